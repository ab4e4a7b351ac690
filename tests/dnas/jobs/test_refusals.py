"""What cannot be trained is refused by the command before any training: exit code 2, one sentence, no run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dnas.commands import cli

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

from bayesopt import Proposer
from dnas import Metric, Task


class Net(nn.Module):
    def __init__(self, classes=3, norm=False):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.last = nn.Linear(4, classes)

    def features(self, x):
        return self.norm(F.relu(self.first(x)).mean((2, 3)))

    def forward(self, x):
        return self.last(self.features(x))


def net(**arguments):
    torch.manual_seed(0)
    return Net(**arguments)


class Returning(Net):
    def __init__(self, what):
        super().__init__(5)
        self.what = what

    def forward(self, x):
        y = super().forward(x)
        if self.what == "exit":
            raise SystemExit(3)
        if self.what == "exit in training" and self.training:
            raise SystemExit(0)
        if self.what == "bare assertion":
            assert False
        if self.what == "error in training":
            if self.training:
                raise LookupError("no such thing")
            return y
        return {
            "exit in training": y,
            "logits": y,
            "tuple": (y, y),
            "dict": {"out": y, "aux": y},
            "list in training": [y, y] if self.training else y,
            "map": y[:, :, None, None],
            "no gradient": y.detach(),
            "number": y[:, 0],
            "NaN": y / 0 * 0,
            "text": "logits",
        }[self.what]


class Asking(Net):
    def forward(self, x):
        return self.last(self.features(x)) * (2 if type(self.last) is nn.Linear else 1)


class Rows(Net):
    def __init__(self, what):
        super().__init__(5)
        self.what = what

    def forward(self, x):
        y = super().forward(x)
        if self.what == "squeezed":
            return y.squeeze()
        if len(y) < 3 or (self.what == "means of two in training" and not self.training):
            return y
        if self.what == "eight at most":
            return y[:8]
        if self.what == "fours":
            return y.reshape(-1, 4, 5).reshape(-1, 5)
        return y.reshape(-1, 2, 5).mean(1)


def frozen():
    return net().requires_grad_(False)


def unsized():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


def broken():
    raise LookupError("no such thing")


def leaving():
    raise SystemExit(0)


def data(train=40, test=20, classes=3, first=0):
    images = torch.rand(train + test, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = first + torch.arange(train + test) % classes
    return images[:train], labels[:train], images[train:], labels[train:]


def seven_classes():
    return data(classes=7)


def one_too_many():
    images, labels, *test = data()
    labels[11] = 3
    return images, labels, *test


def few():
    return data(train=20, test=3)


def thirty_six():
    return data(train=36)


def thirty_four():
    return data(train=34)


def splits(**changed):
    from dnas.data.load import DataSplits, MemoryImages
    found = {}
    for name in ("train", "val", "test"):
        images, labels, *_ = data(train=changed.get(name, 24))
        found[name] = MemoryImages(images, labels, (0.5,), (0.5,))
    return DataSplits(**found, classes=3, input_shape=(1, 6, 6))


def no_test_images():
    return splits(test=0)


def one_validation_image():
    return splits(val=1)


def unreadable():
    from dnas.data.load import MemoryImages
    class Broken(MemoryImages):
        def _batches(self, *given, **options):
            raise LookupError("no such thing")
        def subset(self, indices):
            return self
    found = splits()
    found.val.__class__ = Broken
    return found


def energy(layer, weight_bits, activation_bits):
    return layer.macs / abs(weight_bits - 4)


def nothing(layer, weight_bits, activation_bits):
    pass


def one_argument(layer):
    return 1.0


def asked_in_vain(question):
    assert question.evidence.sensitivities.min() > 0
    raise LookupError("no such thing")


def worth_nothing(network, group):
    raise LookupError("no such thing")


def one_score(network, group):
    return [1.0]


def not_a_number(network, group):
    return torch.full((group.units,), float("nan"))


def endless(layer, weight_bits, activation_bits):
    return 1e300


def free(layer, weight_bits, activation_bits):
    return 0.0


def wide():
    network = Net(3)
    network.first, network.last = nn.Conv2d(1, 32, 3), nn.Linear(32, 3)
    return network


class Raising(Proposer):
    def suggestions(self, number, limits):
        raise LookupError("no such thing")
        yield


class Pointing(Proposer):
    def suggestions(self, number, limits):
        yield [0.5] * len(self.space.free)


class Unmade(Pointing):
    def __init__(self):
        pass


class Plain(Task):
    metric = Metric("right", "larger")

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs, targets)

    def values(self, outputs, targets):
        return outputs.argmax(1) == targets


class Unteachable(Plain):
    def divergence(self, outputs, told):
        pass


class OneValue(Plain):
    def values(self, outputs, targets):
        return torch.ones(1)


class Refusing(Plain):
    def check(self, sets, outputs):
        assert False


class OnePattern(Plain):
    exact_layers = "last"
"""
JOB = """
name = "toy"
device = "cpu"
threads = 1
model.source = "own:net"
data = { source = "own:data", batch_size = 8 }
space = { weight_bits = [2, 4, 8], activation_bits = [4, 8], first_layer = "search", last_layer = "search" }
quantizer.calibration_batches = 1
pretrain.epochs = 0
search = { warmup_epochs = 1, epochs = 1, budgets = [{ size_bytes = "60%" }] }
finetune = { epochs = 1, seeds = 1 }
controls = { uniform = [4], ilp = false }
prune.enabled = false
"""


@pytest.fixture(autouse=True)
def _with_modules_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own", raising=False)
    Path("own.py").write_text(MODULE)
    Path("job.toml").write_text(JOB)


def search(*settings: str) -> Result:
    sets = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(cli.app, ["search", "job.toml", "--run", "run", *sets])


PRUNED = (
    "model.source='own:wide'",
    "prune.enabled=true",
    "prune.budgets=[{size_bytes='80%'}]",
    "prune.trials=9",
)
REFUSED = {
    "labels outside the head": (("data.source=own:seven_classes",), "label 6 of the training images has no output"),
    "one label outside": (("data.source=own:one_too_many",), "the network has 3 (0 to 2); give it more"),
    "tuple": (("model.source=own:Returning", "model.arguments={what='tuple'}"), "returns a tuple of 2 values in eval"),
    "dict": (("model.source=own:Returning", "model.arguments={what='dict'}"), "returns a dict of 'out', 'aux' in eval"),
    "list": (
        ("model.source=own:Returning", "model.arguments={what='list in training'}"),
        "a list of 2 values in train",
    ),
    "map": (("model.source=own:Returning", "model.arguments={what='map'}"), "a float32 tensor of shape (2, 5, 1, 1)"),
    "one number": (("model.source=own:Returning", "model.arguments={what='number'}"), "of shape (2,); wrap it"),
    "rows dropped from the ninth on": (
        ("model.source=own:Rows", "model.arguments={what='eight at most'}", "data.batch_size=9"),
        "of shape (8, 5) in eval mode for 9 images; wrap it",
    ),
    "rows merged": (
        ("model.source=own:Rows", "model.arguments={what='means of two'}"),
        "of shape (4, 5) in eval mode for 8 images",
    ),
    "rows merged in training": (
        ("model.source=own:Rows", "model.arguments={what='means of two in training'}"),
        "of shape (4, 5) in training mode for 8 images",
    ),
    "a last image alone": (
        ("model.source=own:Rows", "model.arguments={what='squeezed'}", "data.batch_size=19"),
        "of shape (5,) in eval mode for 1 image; wrap it so that it returns a tensor with a row for each image",
    ),
    "a last batch of another number": (
        ("model.source=own:Rows", "model.arguments={what='fours'}", "data.batch_size=12"),
        "fails in training mode on images of shape (7, 1, 6, 6)",
    ),
    "a layer that is asked for its type": (
        ("model.source=own:Asking", "pretrain.epochs=1"),
        "layer 'last' cannot be quantized: the network reads it otherwise than by calling it",
    ),
    "text": (("model.source=own:Returning", "model.arguments={what='text'}"), "returns a str in eval mode"),
    "no gradient": (("model.source=own:Returning", "model.arguments={what='no gradient'}"), "cannot be differentiated"),
    "failing in training": (
        ("model.source=own:Returning", "model.arguments={what='error in training'}"),
        "fails in training mode on images of shape (2, 1, 6, 6): LookupError: no such thing",
    ),
    "leaving": (("model.source=own:Returning", "model.arguments={what='exit'}"), "(1, 6, 6): SystemExit: 3; give data"),
    "leaving in training": (
        ("model.source=own:Returning", "model.arguments={what='exit in training'}"),
        "fails in training mode on images of shape (2, 1, 6, 6): SystemExit: 0",
    ),
    "failing without a word": (
        ("model.source=own:Returning", "model.arguments={what='bare assertion'}"),
        "does not run on an input of shape (1, 6, 6): AssertionError; give data",
    ),
    "NaN": (("model.source=own:Returning", "model.arguments={what='NaN'}"), "that holds NaN before any training"),
    "too many threads": (("threads=999999",), "expected at most 1024"),
    "frozen": (("model.source=own:frozen",), "no parameter that requires a gradient"),
    "layers without sizes": (
        ("model.source=own:unsized",),
        "model 'own:unsized': the parameter '1.weight' is lazy, so it has no shape yet; run the network once",
    ),
    "one image per batch": (("model.arguments.norm=true", "data.batch_size=1"), "module 'norm'"),
    "one image for theta": (("model.arguments.norm=true", "search.theta_fraction=0.01"), "only 1 image for θ"),
    "one image for validation": (
        ("model.arguments.norm=true", "data.source=own:one_validation_image"),
        "only 1 image for validation",
    ),
    "no test images": (("data.source=own:no_test_images",), "the test split has 0 images and 0 labels"),
    "unreadable images": (("data.source=own:unreadable",), "the validation images cannot be read: LookupError"),
    "model that raises": (("model.source=own:broken",), "'own:broken' cannot be built: LookupError: no such thing"),
    "model that leaves": (("model.source=own:leaving",), "'own:leaving' cannot be built: SystemExit"),
    "data that raise": (("data.source=own:broken",), "'own:broken' failed: LookupError: no such thing"),
    "data that leave": (("data.source=own:leaving",), "'own:leaving' failed: SystemExit"),
    "cost that raises": (
        ("costs.functions={energy='own:energy'}",),
        "'energy' failed for layer 'first' at (4, 4): Zero",
    ),
    "cost that is none": (
        ("costs.functions={energy='own:nothing'}",),
        "'energy' failed for layer 'first' at (2, 4): T",
    ),
    "cost of one argument": (("costs.functions={c='own:one_argument'}",), "called as function(layer, weight_bits, "),
    "budget of another unit": (("search.budgets=[{bitops='400 KiB'}]",), "'B' is no unit of bitops"),
    "a control that raises": (
        ("controls.own=['own:asked_in_vain']",),
        "control 'own:asked_in_vain' failed for size_bytes 60%: LookupError: no such thing",
    ),
    "a criterion that raises": (
        ("prune.enabled=true", "prune.criterion='own:worth_nothing'"),
        "criterion 'own:worth_nothing' cannot score group 'first': LookupError: no such thing",
    ),
    "a criterion of one score": (
        ("prune.enabled=true", "prune.criterion='own:one_score'"),
        "gives scores of shape (1,) for group 'first'; one score for each of its 4 units is needed",
    ),
    "a criterion of no numbers": (("prune.enabled=true", "prune.criterion='own:not_a_number'"), "group 'first'"),
    "a proposer that raises": (
        (*PRUNED, "prune.proposer='own:Raising'"),
        "proposer 'own:Raising' failed: LookupError: no such thing; suggestions(number, limits) yields",
    ),
    "a proposer of points": (
        (*PRUNED, "prune.proposer='own:Pointing'"),
        "proposer 'own:Pointing' suggests a list; yield what self.suggestion(point, limits, source) returns",
    ),
    "a proposer that cannot be made": (
        (*PRUNED, "prune.proposer='own:Unmade'"),
        "proposer 'own:Unmade' cannot be made: TypeError",
    ),
    "a task that no net is taught by": (
        ("task.kind='own:Unteachable'",),
        "the divergence of task Unteachable is a NoneType; give one number",
    ),
    "a task of one value": (
        ("task.kind='own:OneValue'",),
        "values of task OneValue are a float32 tensor of shape (1,)",
    ),
    "a task that refuses without a word": (("task.kind='own:Refusing'",), "check of task Refusing fails: Assertion"),
    "a task of one pattern": (("task.kind='own:OnePattern'",), "exact_layers is 'last'; give patterns in a tuple"),
    "a cost beyond all files": (
        ("costs.functions={energy='own:endless'}",),
        "cost 'energy' of layer 'first' at (2, 4) is 1e+300; it must be a number from 0 to 1e+90",
    ),
    "a share of nothing": (
        ("costs.functions={energy='own:free'}", "search.budgets=[{energy='60%'}]"),
        "budget '60%' is a share of nothing: energy is 0 there; give another cost",
    ),
    "pruning to more than all": (
        ("prune.enabled=true", "prune.budgets=[{size_bytes='120%'}]"),
        "takes with all its filters; ask for less than 100%",
    ),
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(settings: str) -> None:
    given, part = REFUSED[settings]
    result = search(*given)
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert result.exit_code == 2
    assert not Path("run").exists()


@pytest.mark.whole
def test_json_is_alone_on_stdout_where_the_users_own_code_prints() -> None:
    forward = "        y = super().forward(x)\n"
    source = Path("own.py").read_text().replace(forward, f"        print('called')\n{forward}")
    Path("own.py").write_text(f"print('imported')\n{source}")
    model = ("--set", "model.source=own:Returning", "--set", "model.arguments={what='logits'}")
    for words in (
        ("search", "job.toml", "--run", "run", "--json", *model),
        ("evaluate", "run", "search-1", "--json"),
        ("doctor", "--job", "job.toml", "--json"),
    ):
        result = CliRunner().invoke(cli.app, [*words])
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)


@pytest.mark.whole
@pytest.mark.parametrize("source", ["thirty_six", "thirty_four"])
def test_a_last_batch_of_one_image_is_no_trouble(source: str) -> None:
    """36 images leave 32 to train and 4 to judge, 33 of 34 leave a batch of one to calibrate by."""
    more = ("model.arguments.norm=true", f"data.source=own:{source}", "data.validation_fraction=0.25")
    result = search(*more, "data.batch_size=4")
    assert result.exit_code == 0, result.stderr


def test_a_split_of_a_few_images_is_told() -> None:
    result = search("data.source=own:few", "model.arguments.norm=true", "finetune.epochs=0", "controls.uniform=[]")
    assert result.exit_code == 0, result.stderr
    records = map(json.loads, Path("run/journal.jsonl").read_text().splitlines())
    notes = [record["text"] for record in records if record["event"] == "note"]
    assert "there are only 2 validation images, so one of them is 50 % of every figure; use more data" in notes
    assert any(note.startswith("there are only 3 test images") for note in notes)


def test_a_frozen_network_can_be_searched_where_no_weight_is_trained() -> None:
    result = search("model.source=own:frozen", "search.warmup_epochs=0", "finetune.epochs=0", "controls.uniform=[]")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(("budget", "code"), [("size_bytes=50%", 0), ("size_bytes=1%", 2), ("size_bytes=3 ms", 2)])
def test_the_doctor_of_a_budget_that_cannot_be_met_ends_with_2(budget: str, code: int) -> None:
    result = CliRunner().invoke(cli.app, ["doctor", "--job", "job.toml", "--input-shape", "1,6,6", "--budget", budget])
    assert result.exit_code == code, result.output


def test_the_doctor_of_a_job_takes_the_shape_from_its_data() -> None:
    def shape(*words: str) -> list[int]:
        result = CliRunner().invoke(cli.app, ["doctor", "--job", "job.toml", "--json", *words])
        assert result.exit_code == 0, result.output
        found: list[int] = json.loads(result.stdout)["input_shape"]
        return found

    assert shape() == [1, 6, 6]
    assert shape("zoo:tiny_resnet") == [1, 6, 6]
    assert shape("--input-shape", "1,5,7") == [1, 5, 7]
    job = Path("job.toml").read_text()
    for data, expected in (('"digits", image_size = 7', [1, 7, 7]), ('"mnist", root = "nowhere"', [1, 28, 28])):
        Path("job.toml").write_text(job.replace('"own:data"', data))
        assert shape() == expected
    Path("job.toml").write_text(job.replace("own:data", "own:broken"))
    result = CliRunner().invoke(cli.app, ["doctor", "--job", "job.toml"])
    assert result.exit_code == 2
    assert "or give the shape of one image with --input-shape" in result.stderr
