from __future__ import annotations

import math

import pytest

from dnas.config.file import dump_job, load_job, preset_names
from dnas.jobs.planning import Plan, plan_job
from dnas.training.task import task_of
from search_spaces.models.load import load_model

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "imagefolder": (3, 224, 224)}


def plan(name: str) -> Plan:
    job = load_job(name)
    return plan_job(job, load_model(job.model.source, arguments=job.model.arguments).module, SHAPES[job.data.source])


def test_all_presets_are_there_and_described() -> None:
    assert set(preset_names()) == {
        "digits",
        "detection-shapes",
        "segmentation-shapes",
        "squantizer-ssdlite-coco-4bit",
        "dnas-resnet20-cifar10",
        "dnas-resnet56-cifar10",
        "dnas-resnet18-imagenet-compute",
        "edmips-resnet18-imagenet",
        "squantizer-resnet20-cifar10-4bit",
        "squantizer-resnet18-imagenet-4bit",
        "squantizer-mobilenetv2-imagenet",
        "autoprune-bnn-resnet20-cifar10",
        "autoprune-dorefa2-resnet20-cifar10",
        "autoprune-bnn-resnet18-imagenet",
        "sp-nets-resnet20-cifar10",
        "sp-nets-resnet18-imagenet",
        "quantizable-resnet20-cifar100",
    }
    for name, description in preset_names().items():
        assert load_job(name).name == name
        assert description.endswith(".")


@pytest.mark.parametrize(
    ("name", "decisions", "weights"),
    [
        ("digits", 6, 4608),
        ("dnas-resnet20-cifar10", 9, 267264),  # methods/dnas.md §6
        pytest.param("dnas-resnet56-cifar10", 27, 847872, marks=pytest.mark.whole),
        pytest.param("dnas-resnet18-imagenet-compute", 8, None, marks=pytest.mark.whole),
        ("edmips-resnet18-imagenet", 19, None),
    ],
)
def test_a_preset_can_be_planned_on_its_network(name: str, decisions: int, weights: int | None) -> None:
    planned = plan(name)
    assert len(planned.space.decisions) == decisions
    searched = [planned.graph[layer] for decision in planned.space.decisions for layer in decision.layers]
    if weights is not None:
        assert sum(layer.weight_elements for layer in searched) == weights
    else:
        assert sum(layer.macs for layer in searched) == 1_695_547_392


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "layers", "weights"),
    [
        ("squantizer-resnet20-cifar10-4bit", 18, 267264),
        ("squantizer-resnet18-imagenet-4bit", 19, 11_157_504),  # all but conv1 and fc, shortcuts included
        ("squantizer-mobilenetv2-imagenet", 51, 2_188_896),
    ],
)
def test_squantizer_leaves_the_first_and_the_last_layer_alone(name: str, layers: int, weights: int) -> None:
    planned = plan(name)
    sparse = [layer for decision in planned.space.decisions for layer in decision.layers]
    assert len(sparse) == layers
    assert sum(planned.graph[layer].weight_elements for layer in sparse) == weights
    names = [layer.name for layer in planned.graph.layers]
    assert set(names) - set(sparse) == {names[0], names[-1]}
    assert planned.space.uniform(4)[names[0]].weight_bits == planned.space.uniform(4)[names[-1]].weight_bits == 32


@pytest.mark.parametrize(
    ("name", "rate", "epochs"), [("dnas-resnet20-cifar10", 0.025, 90), ("dnas-resnet18-imagenet-compute", 0.065, 60)]
)
def test_the_temperature_follows_the_paper(name: str, rate: float, epochs: int) -> None:
    search = load_job(name).search
    assert search.epochs == epochs
    assert search.temperature_end == pytest.approx(search.temperature_start * math.exp(-rate * epochs), rel=1e-3)


def test_the_compute_search_offers_the_six_pairs() -> None:
    planned = plan("dnas-resnet18-imagenet-compute")
    cells = planned.space.allowed[0].nonzero()
    pairs = {planned.space.pair(int(row), int(column)) for row, column in zip(*cells, strict=True)}
    assert pairs == {(1, 4), (2, 4), (3, 3), (4, 4), (8, 8), (32, 32)}


@pytest.mark.parametrize("name", sorted(preset_names()))
def test_a_preset_survives_being_written_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("presets") / "job.toml"
    path.write_text(dump_job(load_job(name)))
    assert load_job(str(path)) == load_job(name)


@pytest.mark.parametrize(("name", "size"), [("detection-shapes", 64), ("segmentation-shapes", 32)])
def test_presets_of_other_tasks_can_be_planned(name: str, size: int) -> None:
    job = load_job(name)
    network = load_model(job.model.source, arguments=job.model.arguments).module
    planned = plan_job(job, network, (3, size, size), task_of(job.task).exact_layers)
    assert len(planned.space.decisions) == 7
    assert len(planned.budgets) == 2
    assert (32, 32) not in planned.space.fixed.values()
    assert planned.graph.channels.groups


@pytest.mark.slow
def test_squantizer_leaves_a_detectors_box_regressors_and_ends_alone() -> None:
    job = load_job("squantizer-ssdlite-coco-4bit")
    network = load_model(job.model.source, arguments={"num_classes": 91}).module
    planned = plan_job(job, network, (3, 320, 320), task_of(job.task).exact_layers)
    names = [layer.name for layer in planned.graph.layers]
    kept = {name for name, pair in planned.space.fixed.items() if pair == (32, 32)}
    ends = {f"head.classification_head.module_list.{level}.1" for level in range(6)}
    boxes = {name for name in names if "regression_head" in name}
    assert kept == {names[0], *ends, *boxes}
    assert all(planned.graph[name].out_channels == 6 * 91 for name in ends)
