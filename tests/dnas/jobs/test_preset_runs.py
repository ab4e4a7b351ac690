"""Every shipped preset runs to its end on a few random images, and so does every engine, loss and way of sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dnas.config.file import load_job
from dnas.config.job import JobConfig
from results.events import Note
from results.run.folder import Run
from search_spaces.costs.budgets import Budget

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
THINGS = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class ThinResNet(ResNet):
    def _make_layer(self, block, planes, *others, **named):
        return super()._make_layer(block, planes // 16, *others, **named)


def resnet18():
    net = ThinResNet(BasicBlock, [1, 1, 1, 1])
    net.fc = nn.Linear(32, 4)
    return net


def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(32) % 4
    return pixels[:24], labels[:24], pixels[24:], labels[24:]
"""
TOY = (
    "device=cpu",
    "threads=1",
    "data.source=own_things:images",
    "data.validation_fraction=0.34",
    "data.batch_size=8",
    "data.workers=0",
    "quantizer.calibration_batches=1",
    "search.warmup_epochs=1",
    "search.epochs=1",
    "search.sample_every=1",
    "search.samples=1",
    "finetune.epochs=1",
    "finetune.seeds=1",
    "controls.uniform=[4]",
)
FOUR_CLASSES = "model.arguments={num_classes=4}"
NARROW = "model.arguments={num_classes=4, width_mult=0.1}"
TINY = "model.source=zoo:tiny_resnet;model.arguments={num_classes=4, in_channels=3}"
THIN = "model.source=own_things:resnet18"


@pytest.fixture(autouse=True)
def _beside_the_users_own_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_things.py").write_text(THINGS)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("preset", "model", "settings"),
    [
        ("dnas-resnet20-cifar10", TINY, ("controls.uniform=[2,4]", "data.image_size=8")),
        ("dnas-resnet56-cifar10", TINY, ("data.image_size=8",)),
        ("dnas-resnet18-imagenet-compute", THIN, ("data.image_size=32",)),
        ("edmips-resnet18-imagenet", THIN, ("data.image_size=32",)),
        pytest.param("dnas-resnet20-cifar10", FOUR_CLASSES, ("data.image_size=8",), marks=pytest.mark.slow),
        pytest.param("dnas-resnet56-cifar10", FOUR_CLASSES, ("data.image_size=8",), marks=pytest.mark.slow),
        pytest.param("dnas-resnet18-imagenet-compute", FOUR_CLASSES, ("data.image_size=32",), marks=pytest.mark.slow),
        pytest.param("edmips-resnet18-imagenet", FOUR_CLASSES, ("data.image_size=32",), marks=pytest.mark.slow),
    ],
)
def test_a_preset_runs_to_its_end(
    preset: str, model: str, settings: tuple[str, ...], carried_out: CarriedOut, tmp_path: Path
) -> None:
    size = [] if any("image_size" in setting for setting in settings) else ["data.image_size=16"]
    config = load_job(preset, [*TOY, *model.split(";"), *size, *settings])
    run = carried_out(config, tmp_path / "run")
    kinds = Counter(point.kind for point in run.load_front().points)
    assert kinds == Counter(search=1, sampled=1, uniform=len(config.controls.uniform))
    drawn = run.assignment("sampled-1-epoch1-1")
    assert drawn.provenance.kind == "sampled"
    assert drawn.pairs.keys() == run.assignment("search-1").pairs.keys()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("preset", "model", "settings"),
    [
        ("squantizer-resnet20-cifar10-4bit", TINY, ("data.image_size=8",)),
        ("squantizer-resnet18-imagenet-4bit", THIN, ("data.image_size=32",)),
        (
            "squantizer-mobilenetv2-imagenet",
            NARROW,
            ("data.image_size=32", "finetune.learning_rate=0.005", "controls.uniform=[]"),
        ),
    ],
)
def test_a_squantizer_preset_runs_to_its_end(
    preset: str, model: str, settings: tuple[str, ...], carried_out: CarriedOut, tmp_path: Path
) -> None:
    config = load_job(preset, [*TOY, *model.split(";"), *settings])
    run = carried_out(config, tmp_path / "run")
    points = run.load_front().points
    assert Counter(point.kind for point in points) == Counter(
        squantizer=len(config.squantizer.sigma), uniform=len(config.controls.uniform)
    )
    for sigma in config.squantizer.sigma:
        told = run.assignment(f"sq4-sigma{sigma:g}").metrics["compression"]
        assert 0 < told["sparsity"] < 1
        assert told["sparse_layers_without_index"] > 8  # that of dense 4-bit weights
        assert told["sparse_layers_without_index"] > told["sparse_layers_with_index"]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("preset", "model", "size"),
    [
        ("autoprune-bnn-resnet20-cifar10", TINY, "data.image_size=8"),
        ("autoprune-dorefa2-resnet20-cifar10", TINY, "data.image_size=8"),
        ("autoprune-bnn-resnet18-imagenet", THIN, "data.image_size=32"),
    ],
)
def test_an_autoprune_preset_runs_to_its_end(
    preset: str, model: str, size: str, carried_out: CarriedOut, tmp_path: Path
) -> None:
    bits = load_job(preset).controls.uniform
    toy = ("prune.trials=3", "prune.finetune_epochs=0", "prune.batchnorm_batches=1", "prune.round_to=1")
    own = (f"controls.uniform={list(bits)}", "finetune.learning_rate=0.01", "finetune.seeds=1", "prune.min_keep=1")
    config = load_job(preset, [*TOY, *model.split(";"), size, *toy, *own])
    run = carried_out(config, tmp_path / "run")
    points = run.load_front().points
    kinds = Counter(point.kind for point in points)
    budgets = len(config.prune.budgets)
    assert kinds["pruned"] == kinds["pruned-uniform"] == kinds["pruned-random"] == budgets
    parent = run.assignment(f"uniform-{bits[0]}")
    for point in points:
        if point.kind == "pruned":
            assignment = run.assignment(point.assignment)
            assert Budget(assignment.provenance.limits, "").met_by(assignment.cost)
            assert assignment.pairs == parent.pairs
            assert any(bits.kept_channels is not None for bits in assignment.layers.values())


@pytest.mark.whole
@pytest.mark.parametrize(
    ("preset", "model", "size", "switches"),
    [
        ("sp-nets-resnet20-cifar10", TINY, "data.image_size=8", ["w1a1", "w1a2", "w1a4", "w1a8", "w1a32"]),
        ("sp-nets-resnet18-imagenet", THIN, "data.image_size=32", ["w2a2", "w4a4", "w8a8", "w32a32"]),
        ("quantizable-resnet20-cifar100", TINY, "data.image_size=8", ["w2a2", "w3a3", "w4a4", "w8a8", "w32a32"]),
    ],
)
def test_a_switchable_preset_runs_to_its_end(
    preset: str, model: str, size: str, switches: list[str], carried_out: CarriedOut, tmp_path: Path
) -> None:
    toy = ("controls.uniform=[]", "pretrain.epochs=1", "finalise.epochs=1", "finalise.seeds=1")
    own = ["model.arguments={}"] if model == THIN else []
    config = load_job(preset, [*TOY, *model.split(";"), *own, size, *toy])
    run = carried_out(config, tmp_path / "run")
    points = {point.assignment: point for point in run.load_front().points}
    assert set(points) == {*switches, *(f"switchable-1-{name}" for name in switches)}
    bitops = [points[name].bitops for name in switches]
    assert bitops == sorted(bitops)
    for name in switches:
        first, *middle, last = run.assignment(name).pairs.values()
        assert first == last == (32, 32)
        assert {f"w{w}a{a}" for w, a in middle} == {name}


@pytest.mark.whole
@pytest.mark.parametrize(
    "settings",
    [
        (
            "search.engine=branches",
            "search.sampling=gumbel_hard",
            "search.weight_updates=step",
            "finetune.start=fresh",
        ),
        (
            "search.loss=log_product",
            "search.sampling=softmax",
            "search.weight_updates=epoch",
            "space.granularity=block",
            "space.weight_bits=[0,2,8]",
            "quantizer.weights=nested",
            "quantizer.activations=nested",
            "quantizer.per_channel=true",
            "finetune.start=supernet",
        ),
        (
            "search.loss=additive",
            "search.budgets=[{size_bytes='30%',bitops='20%'}]",
            "space.pairing=pairs",
            "space.pairs=[[1,4],[2,8],[8,8],[32,32]]",
            "quantizer.weights=dorefa",
            "data.cutout=2",
            "controls.random=1",
        ),
    ],
    ids=["branches", "composite", "pairs"],
)
def test_every_part_of_a_search_runs(
    settings: tuple[str, ...], smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    config = smaller("controls.ilp=true", "controls.measured_ilp=true", "controls.sensitivity_images=40", *settings)
    run = carried_out(config, tmp_path / "run")
    front = run.load_front()
    told = [event.text for event in run.journal.events() if isinstance(event, Note)]
    assert any(text.startswith("sensitivities: 40 images") for text in told)
    assert any(text.startswith("measured sensitivities: losses on 40 images") for text in told)
    assert {"search", "ilp", "measured-ilp", "uniform"} <= {point.kind for point in front.points}
    for point in front.points:
        assert Budget(run.assignment(point.assignment).provenance.limits, "").met_by(point.costs)
