"""Two processes train as one does on the same batches; what they could differ in is made one; what ends one is told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from dnas.commands.processes import loopback
from dnas.config.file import load_job
from dnas.config.job import FinetuneSection
from dnas.config.training import TrainingSection
from dnas.data.given import image_set
from dnas.jobs.job import device_of
from dnas.jobs.stages.prune_trials import Counts, tried_together
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.squantizer.quantizer import delayed
from dnas.switchable.training import SwitchableTrainer
from dnas.training.device import CPU, Device
from dnas.training.distillation import Teacher
from dnas.training.processes import ALONE, Processes
from dnas.training.task import Classification, Task
from dnas.training.task_detection import Detection
from dnas.training.task_segmentation import Segmentation
from dnas.training.trainer import Measurement, Trainer, evaluate
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.models.dense_zoo import tiny_segmenter
from tests.computing import copies_compute
from tests.dnas.jobs.test_prune_trials import net, objective
from tests.dnas.jobs.test_task_jobs import Beside, TwoInputs, pairs
from tests.dnas.search.test_trainer import DATA, budget, supernet
from tests.dnas.search.test_trainer import trainer as search_trainer
from tests.dnas.switchable.test_training import images as switchable_images
from tests.dnas.switchable.test_training import net_of, section
from tests.dnas.training.test_task_detection import of_family, pictures
from tests.dnas.training.test_task_segmentation import pictures as maps
from tests.dnas.training.test_trainer import network
from tests.known import known_graph
from tests.sparse_nets import quantized
from tests.toys import SHAPE, Net, images, inputs, seeded, trained

STAGES = (
    "fixed", "single rows", "accumulating", "taught", "sparse", "segmentation", "detection", "two inputs",
    "warm-up", "sandwich", "theta", "branches", "switchable",
)  # fmt: skip
IMAGES = images(48)
ASKED = [[{"stem": n, "first": 6 - n} for n in numbers] for numbers in ([3], [2, 4], [4, 3, 2], [])]


def trainers(device: Device) -> dict[str, Any]:
    """One trainer of each kind; three updates an epoch."""
    torch.manual_seed(3)
    fixed, accumulating = (Net().train().to(device.place) for _ in range(2))
    sparse = quantized(trained(Net()))
    calibrate(sparse, [inputs()])
    sparse.to(device.place)
    return {
        "single rows": Trainer(
            normalised_last().to(device.place), TrainingSection(epochs=2, learning_rate=0.01),
            images=images(6), batch_size=2, device=device,
        ),
        "fixed": Trainer(fixed, TrainingSection(epochs=2), images=IMAGES, batch_size=16, device=device),
        "accumulating": Trainer(
            accumulating, TrainingSection(epochs=2, accumulation=2, gradient_clipping=0.1, averaging=0.9),
            images=IMAGES, batch_size=12, device=device,
        ),
        "taught": Trainer(
            quantized_net().to(device.place), FinetuneSection(epochs=2, label_smoothing=0.1, damping=0.1),
            images=IMAGES, batch_size=16, device=device, teacher=Teacher(trained(Net()).to(device.place), 0.5),
        ),
        "sparse": Trainer(
            sparse, TrainingSection(epochs=2), images=IMAGES, batch_size=16, device=device,
            on_progress=delayed(sparse, 0.5),
        ),
        "switchable": SwitchableTrainer(
            net_of().to(device.place), section(), images=switchable_images(), batch_size=8, device=device
        ),
        **{name: of_task(*made, device) for name, made in tasks().items()},
    }  # fmt: skip


def tasks() -> dict[str, tuple[nn.Module, Task, Any]]:
    """A network, a task and images of each kind that is no classification.

    The losses of this detector are means over images. Others divide by what is in a batch: each process by what its own
    rows have.
    """
    torch.manual_seed(5)
    return {
        "segmentation": (tiny_segmenter(width=4), Segmentation(), maps(12)),
        "detection": (of_family("retinanet"), Detection(), pictures(6)),
        "two inputs": (TwoInputs(), Beside(), image_set(pairs()[:2])),
    }


def of_task(network: nn.Module, task: Task, images: Any, device: Device) -> Trainer:
    return Trainer(
        network.to(device.place), TrainingSection(epochs=2, learning_rate=0.01), images=images,
        batch_size=len(images) // 3 // 2 * 2, device=device, task=task,
    )  # fmt: skip


def normalised_last() -> nn.Module:
    """A network whose BatchNorm has one value of each image and channel: of one image there are no statistics."""
    torch.manual_seed(4)
    pooled = nn.Sequential(nn.Conv2d(SHAPE[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    return nn.Sequential(pooled, nn.Flatten(), nn.Linear(4, 3))


def quantized_net() -> nn.Module:
    model = trained(Net())  # without dropout, which each process draws anew
    graph = known_graph(model, SHAPE)
    made = quantize_fixed(model, graph, {spec.name: LayerBits(3, 4) for spec in graph.layers}, QuantizerChoice())
    calibrate(made, [inputs()])
    return made


def searching(device: Device, engine: str = "composite", **section: Any) -> Any:
    """A search whose updates are those of all processes."""
    made = search_trainer(supernet(engine), **section)
    return type(made)(
        made.supernet.to(device.place), made.section, replace(DATA, batch_size=24), seed=0, label="mine", device=device
    )


def stages(device: Device) -> Iterator[tuple[str, Any, Iterator[Any]]]:
    """The name of each stage, its trainer, and its epochs, which are trained as they are asked for."""
    for name, made in trainers(device).items():
        yield name, made, made.epochs()
    for name, keys in {"warm-up": {}, "sandwich": {"warmup": "sandwich"}}.items():
        warm = searching(device, **keys)
        yield name, warm, warm.warmup()
    for name, engine in {"theta": "composite", "branches": "branches"}.items():
        theta = searching(device, engine)
        yield name, theta, theta.search(budget(theta.supernet))


def trained_stages(
    device: Device, without: Sequence[str] = (), entered: Callable[[str], object] = lambda stage: None
) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    """The losses of each stage's epochs and what it ends with; ``entered`` is told of each before it begins."""
    ends: dict[str, tuple[list[float], dict[str, Tensor]]] = {}
    for stage, made, epochs in stages(device):
        if stage not in without:
            entered(stage)
            ends[stage] = [record.loss for record in epochs], made.state()[0]
    return ends


def told_of_infinity(device: Device) -> str:
    """What a training says whose last rows, which the second process has, overflow in a layer."""
    model = trained(Net())

    def overflow(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * math.inf if device.processes.rank == device.processes.size - 1 else output

    model.second.register_forward_hook(overflow)
    with pytest.raises(JobError) as caught:
        next(Trainer(model, TrainingSection(epochs=1), images=IMAGES, batch_size=16, device=device).epochs())
    return str(caught.value)


def gradients_of_some(processes: Processes) -> list[list[float] | None]:
    """Averaged gradients of a parameter that all have one of, that the second alone has, that none has."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + processes.rank)
    if processes.rank:
        parameters[1].grad = torch.full((2,), 4.0)
    processes.average_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def refused(processes: Processes) -> str:
    def make() -> None:
        if processes.rank:
            raise InputError("there is no folder /data here")

    with pytest.raises(InputError) as caught:
        processes.all_accept(make)
    return str(caught.value)


def work(rank: int, folder: str, find: Callable[[int], Any]) -> None:
    """What each of two processes does: it keeps what it finds."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    try:
        found = find(rank)
    finally:
        dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


def stages_of(rank: int) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    """Every stage, as two processes train it."""
    return trained_stages(replace(CPU, processes=Processes.here(synchronise_batchnorm=True)))


def found_by(rank: int) -> dict[str, Any]:
    """What one of two processes finds; warnings are errors in this one as in all tests."""
    processes = Processes.here(synchronise_batchnorm=True)
    device = replace(CPU, processes=processes)
    unsynchronised = replace(CPU, processes=Processes.here())
    own = Trainer(
        network(), TrainingSection(epochs=1, averaging=0.9), images=IMAGES, batch_size=16, device=unsynchronised
    )
    list(own.epochs())
    shaken = trained(Net())
    with torch.no_grad():
        shaken.head.weight.mul_(1 + rank)
    return {
        "own statistics": own.state()[0],
        "infinity": told_of_infinity(unsynchronised),
        "gradients": gradients_of_some(processes),
        "refused": refused(processes),
        "measured": [evaluate(trained(Net()), IMAGES, size, device) for size in (7, 16, 100)],
        "their own": evaluate(shaken, IMAGES, 16, device, Gathering()),
        "noise": noise(device),
        "trials": [trials_of(device, asked) for asked in ASKED],
    }


def trials_of(device: Device, asked: Sequence[Counts]) -> list[Measurement]:
    """The trials of a pruning."""
    return list(tried_together(objective(net(), device=device), asked))


class Gathering(Classification):
    """A task whose meter is not a mean."""

    def meter(self) -> Any:
        return Counting()


class Counting:
    """Counts the images that are right."""

    def __init__(self) -> None:
        self.right = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())

    def compute(self) -> int:
        return self.right


def noise(device: Device) -> list[float]:
    with device.own_randomness(5):
        return torch.rand(3).tolist()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, of which this is the first."""
    return in_two(found_by, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def both_stages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[list[float], dict[str, Tensor]]]]:
    """What they trained."""
    return in_two(stages_of, tmp_path_factory.mktemp("stages"))


def in_two(find: Callable[[int], Any], folder: Path) -> list[Any]:
    """What each of two processes finds."""
    # A copy of this process has imported already what takes a new one seconds.
    other = multiprocessing.get_context("fork" if copies_compute() else "spawn").Process(
        target=work, args=(1, str(folder), find)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", loopback())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: here they wait
            other.start()
        try:
            work(0, str(folder), find)
            other.join()
        finally:
            other.kill()
    assert other.exitcode == 0
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


@cache
def trained_alone() -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    """What one process finds on the same batches."""
    return trained_stages(CPU)


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    return trained_alone()


@pytest.mark.whole
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one_does(stage: str, both_stages: Any, alone: Any) -> None:
    losses, tensors = both_stages[0][stage]
    expected_losses, expected = alone[stage]
    assert len(losses) > 1
    assert losses == pytest.approx(expected_losses, rel=2e-4)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.whole
@pytest.mark.parametrize("stage", STAGES)
def test_all_processes_end_with_the_same_bits(stage: str, both_stages: Any) -> None:
    (losses, first), (others, second) = (each[stage] for each in both_stages)
    assert losses == others
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.whole
def test_statistics_of_each_processs_own_rows_are_averaged(both: Any) -> None:
    first, second = (each["own statistics"] for each in both)
    assert any("running_mean" in name for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_loss_that_only_one_process_sees_is_told_by_all(both: Any) -> None:
    assert both[0]["infinity"] == both[1]["infinity"]
    assert "layer 'second' is the first whose output is not finite" in both[0]["infinity"]


def test_gradients_are_averaged_where_any_process_has_one(both: Any) -> None:
    assert both[0]["gradients"] == both[1]["gradients"] == [[1.5, 1.5], [2.0, 2.0], None]


def test_what_one_process_refuses_ends_all_with_its_name(both: Any) -> None:
    assert both[0]["refused"] == both[1]["refused"]
    assert both[0]["refused"].startswith("process 1 on ")
    assert both[0]["refused"].endswith(": there is no folder /data here")


def test_a_measurement_is_that_of_one_process_on_all_images(both: Any) -> None:
    """Whoever has a batch, with more processes than batches too."""
    assert both[0]["measured"] == both[1]["measured"]
    for found in both[0]["measured"]:
        expected = evaluate(trained(Net()), IMAGES, 16)
        assert (found.score, found.images) == (expected.score, expected.images)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_what_cannot_be_put_together_is_measured_by_each_and_the_first_counts(both: Any) -> None:
    assert both[0]["their own"] == both[1]["their own"] == evaluate(trained(Net()), IMAGES, 16, CPU, Gathering())


def test_trials_of_a_pruning_are_those_of_one_process(both: Any) -> None:
    """One of them together, several in turn."""
    assert both[0]["trials"] == both[1]["trials"] == [trials_of(CPU, asked) for asked in ASKED]


def test_what_is_dealt_out_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "gathered", lambda processes, value: [value, ["b", "d"]])
    done: list[str] = []
    found = Processes(0, 2).dealt_out(lambda items: [done.append(item) or item.upper() for item in items], "abcd")
    assert [*found] == ["A", "b", "C", "d"]
    assert done == ["a", "c"]


def test_noise_differs_between_processes(both: Any) -> None:
    assert both[0]["noise"] == noise(CPU) != both[1]["noise"]


def test_targets_that_are_a_list_are_shared_out_by_images() -> None:
    """Of an image set of the user's own, which gives whole batches."""
    x, y = torch.arange(4), [{"boxes": torch.full((3, 4), number)} for number in range(4)]
    for rank in range(2):
        own, targets = Processes(rank, 2).own_rows((x, y))
        assert own.tolist() == [2 * rank, 2 * rank + 1]
        assert [target["boxes"].tolist() for target in targets] == [[[number] * 4] * 3 for number in own.tolist()]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_are_shared_out_evenly_and_once(size: int) -> None:
    x, y = torch.arange(14), {"box": torch.arange(28).reshape(14, 2), "name": "a"}
    parts = [Processes(rank, size).own_rows((x, y)) for rank in range(size)]
    assert {len(part[0]) for part in parts} == {14 // size}
    assert torch.cat([part[0] for part in parts]).equal(x[: 14 // size * size])
    assert all(part[1]["box"][:, 0].equal(2 * part[0]) and part[1]["name"] == "a" for part in parts)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    Processes(0, 4).check_batch(128, 4)
    with pytest.raises(InputError, match=r"batch_size = 130 cannot be shared out among 4 processes; .* such as 132"):
        Processes(0, 4).check_batch(130, 100)
    with pytest.raises(InputError, match="3 images cannot be shared out among 4 processes"):
        Processes(0, 4).check_batch(128, 3)


def test_a_batchnorm_that_does_more_is_not_synchronised() -> None:
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(nn.BatchNorm2d(2), WithActivation(2))
    with pytest.raises(InputError, match="module '1' is a WithActivation"), Processes(0, 2, True).training(model):
        pass
    with Processes(0, 2, True).training(model[:1]):
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize("error", [JobError("cannot write /datastore/peer: disk full"), RuntimeError("sizes 3 and 4")])
def test_an_error_of_its_own_is_told_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)) as caught, Processes(0, 2).watched():
        raise error
    assert caught.value is error


def test_one_process_is_left_as_it_is() -> None:
    x = torch.randn(3, generator=seeded())
    assert ALONE.mean(x) is x
    assert ALONE.agreed(x) is x
    assert Processes.here(synchronise_batchnorm=True) == ALONE


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_devices_are_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = load_job("digits", [f"device={device}", "precision=fp32", "channels_last=false"])
    assert device_of(config).place == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        InputError, match=r"^3 processes were started on .*, which has 2 CUDA devices; start as many, or"
    ):
        device_of(config)
    assert device_of(load_job("digits", ["device=cpu"])).place == torch.device("cpu")
    for name, value in {"LOCAL_WORLD_SIZE": "0", "LOCAL_RANK": "first"}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"^{name} = '{value}' in the environment is no number of a launcher; "):
            device_of(config)
        monkeypatch.delenv(name)
    monkeypatch.setattr(Processes, "here", lambda together: Processes(1, 2))
    with pytest.raises(InputError, match=r"^2 processes were started without LOCAL_RANK in the environment"):
        device_of(config)
