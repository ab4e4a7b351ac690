"""Public functions take what people have at hand, and refuse in one sentence what they cannot take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import bayesopt
import dnas
from dnas.config.job import FinetuneSection, SearchSection
from dnas.data.augmentation import Augmentation
from dnas.data.given import data_splits, image_set
from dnas.data.image_sets import ImageSet, MemoryImages
from search_spaces.errors import InputError
from tests.toys import SHAPE, Net, images, plan, trained

GRAPH, SPACE, TABLE = plan(Net())
BASE = images()
X, Y = next(BASE.batches(len(BASE)))
PAIRS = TensorDataset(X, Y)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((x, int(y)) for x, y in zip(X, Y, strict=True))


class Unlike(Dataset[Any]):
    """A dataset with labels of its own, which a transform changes."""

    targets = (9,) * len(Y)
    target_transform = staticmethod(lambda y: y)

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> Any:
        return X[index].numpy(), np.int64(Y[index])


GIVEN: dict[str, Callable[[], Any]] = {
    "a set of ours": lambda: MemoryImages(X, Y, (0.0,), (1.0,)),
    "loader": lambda: DataLoader(PAIRS, 7),
    "shuffled loader": lambda: DataLoader(PAIRS, 7, shuffle=True),
    "dataset": lambda: PAIRS,
    "subset": lambda: Subset(PAIRS, range(len(Y))),
    "its own labels": Unlike,
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), 7),
    "sampler": lambda: DataLoader(PAIRS, 7, sampler=SubsetRandomSampler(range(len(Y)))),
    "list of batches": lambda: list(DataLoader(PAIRS, 7)),
    "generator": lambda: ((x, y) for x, y in DataLoader(PAIRS, 7)),
    "list of images": lambda: [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "bytes": lambda: ((255 * X.clamp(0, 1)).round().byte(), Y),
}


@pytest.mark.parametrize("name", GIVEN)
def test_images_are_the_same_however_they_are_given(name: str) -> None:
    found = image_set(GIVEN[name]())
    assert isinstance(found, ImageSet)
    assert (len(found), found.input_shape) == (len(Y), SHAPE)
    x, y = (torch.cat(parts) for parts in zip(*found.batches(5), strict=True))
    order = slice(None)
    if name == "sampler":  # read once, in the order that it drew
        order = torch.cdist(X.flatten(1), x.flatten(1)).argmin(1)
    expected = X.clamp(0, 1) if name == "bytes" else X
    assert torch.allclose(x[order], expected, atol=1 / 500 if name == "bytes" else 0)
    assert torch.equal(y[order], Y)
    assert torch.equal(found.labels[order], Y)
    first, again = (list(found.batches(5, seed=3, augmentation=Augmentation(1, True, 2))) for _ in range(2))
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    shuffled = torch.cat([labels for _, labels in first])
    assert torch.equal(shuffled.bincount(), Y.bincount())
    assert not torch.equal(shuffled, Y)
    part = found.subset(torch.tensor([4, 1]))
    assert torch.equal(next(part.batches(2))[0], x[[4, 1]])


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        "digits",
        X,
        [],
        [X],
        [(X,)],
        [{"image": X}],
        (X, Y.float() / 0),
        (X, Y > 0),
        (X, [Y, Y]),
        [(X, -Y)],
        [(X[:1], Y[:1]), (X[:1], torch.rand(1, 2))],
        [(1, 2)],
        TensorDataset(X[:0], Y[:0]),
    ],
)
def test_what_holds_no_images_is_one_sentence(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        data_splits(given)
    assert "\n" not in str(caught.value)


class Spoilt(Dataset[Any]):
    """Has one image that is not finite."""

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> Any:
        return (X[index] if index != 5 else X[index] * torch.inf), Y[index]


@pytest.mark.parametrize(
    "given",
    [Spoilt(), DataLoader(Spoilt(), 8), list(DataLoader(Spoilt(), 4)), [(x.numpy(), int(y)) for x, y in Spoilt()]],
)
def test_an_image_that_is_not_finite_is_named_though_quantizers_would_clip_it(given: Any) -> None:
    network = dnas.quantize_fixed(trained(Net()), GRAPH, LAYERS).eval()
    with pytest.raises(InputError, match=r"image 5 \(from 0 on\) holds values that are not finite"):
        dnas.evaluate(network, given, 8)


SECTIONS: dict[str, Any] = {
    "section": SearchSection(warmup_epochs=0, epochs=1),
    "space": dnas.SpaceOptions(weight_bits=[2, 8], activation_bits=8),  # type: ignore[arg-type]
    "batch_size": 16,
}
BUDGET = {"size_bytes": "60%"}


@pytest.mark.parametrize(
    "data", [DataLoader(PAIRS, 8), PAIRS, (PAIRS, (X, Y)), {"train": PAIRS, "val": DataLoader(PAIRS, 9)}]
)
def test_a_search_and_a_fine_tuning_take_what_people_have(data: Any) -> None:
    model = trained(Net())
    (found,) = dnas.search_bits(model, data, BUDGET, device="cpu", **SECTIONS)
    network, measured = dnas.finetune(model, found, data, FinetuneSection(epochs=0), batch_size=16, device="cpu")
    assert 0 <= measured.top1 <= 1
    assert dnas.evaluate(network, DataLoader(PAIRS, 9), 8, device="cpu") == dnas.evaluate(network, PAIRS, 8)
    trainer = dnas.Trainer(network, FinetuneSection(epochs=1), images=DataLoader(PAIRS, 8), device="cpu")
    assert [epoch.epoch for epoch in trainer.epochs()] == [1]


@pytest.mark.parametrize(
    "data", [None, DataLoader(TensorDataset(X, Y + 1), 8), DataLoader(TensorDataset(X.repeat(1, 2, 1, 1), Y), 8)]
)
def test_a_search_refuses_data_that_do_not_fit(data: Any) -> None:
    with pytest.raises(InputError):
        dnas.search_bits(trained(Net()), data, [BUDGET], **SECTIONS)


@pytest.mark.parametrize("call", ["search", "finetune"])
def test_a_weight_that_is_not_finite_is_named_before_any_training(call: str) -> None:
    model = trained(Net())
    with torch.no_grad():
        last = [*model.parameters()][-1].fill_(torch.inf)
    name = next(name for name, parameter in model.named_parameters() if parameter is last)
    with pytest.raises(InputError, match=f"'{name}' holds {last.numel()} of {last.numel()} values that are not finite"):
        dnas.search_bits(model, PAIRS, BUDGET) if call == "search" else dnas.finetune(model, ASSIGNMENT, PAIRS)


def test_budgets_may_be_one_many_or_read_already() -> None:
    read = dnas.parse_budget({"size_bytes": np.float32(400)}, TABLE)
    assert read.limits == {"size_bytes": 400.0}
    for given in (BUDGET, [BUDGET], (read,), read):
        assert len(dnas.search_bits(trained(Net()), PAIRS, given, **SECTIONS)) == 1
    for wrong in ("12%", ["12%"], 400, [None], [{}], [{"size_bites": "12%"}], [dnas.Budget({"bytes": 1.0}, "")]):
        with pytest.raises(InputError):
            dnas.search_bits(trained(Net()), PAIRS, wrong, **SECTIONS)  # type: ignore[arg-type]


def energy(layer: Any, weight_bits: int, activation_bits: int) -> float:
    return float(layer.macs * weight_bits)


def test_a_cost_is_a_function_or_the_name_of_one() -> None:
    named = dnas.build_costs(functions={"e": f"{__name__}:energy"})
    for costs in (
        named,
        dnas.build_costs(functions={"e": energy}),
        dnas.build_costs(functions={"e": lambda *given: energy(*given)}),
    ):
        assert dnas.CostTable(GRAPH, SPACE, costs).uniform(4, ["e"])["e"] == sum(
            energy(layer, 4, 4) for layer in GRAPH.layers
        )
    for wrong in ({"e": 5}, {"e": "energy"}, {"bitops": energy}, {3: energy}, {"": energy}, [energy]):
        with pytest.raises(InputError):
            dnas.build_costs(functions=wrong)  # type: ignore[arg-type]


NUMBERS: list[Callable[[Any], Any]] = [np.int64, np.uint8, np.float32, lambda n: np.array([n, n]), lambda n: [n, n]]


@pytest.mark.parametrize("number", NUMBERS)
def test_ratios_take_numbers_of_numpy(number: Callable[[Any], Any]) -> None:
    def cost(kept: Any) -> dict[str, float]:
        return {"size_bytes": float(sum(kept.values()))}

    plain = bayesopt.RatioSpace(("a", "b"), (8, 8), cost, min_keep=2, round_to=2)
    space = bayesopt.RatioSpace(["a", "b"], np.array([8, 8]), cost, min_keep=number(2), round_to=number(2))  # type: ignore[arg-type]
    assert space.levels == plain.levels
    assert space.repair(np.array([0.5, 0.1], dtype=np.float32), {"size_bytes": np.float32(11)}) == plain.repair(
        (0.5, 0.1), {"size_bytes": 11}
    )
    ratio = bayesopt.RatioSpace(("a",), (8,), cost, max_ratio=np.float32(0.5), fixed={})
    assert ratio.least() == (4,)


WRONG_RATIOS: list[dict[str, Any]] = [
    {"max_ratio": "half"},
    {"max_ratio": {"a": 0.5}},
    {"max_ratio": [0.5, None]},
    {"max_ratio": True},
    {"min_keep": 1.5},
    {"min_keep": float("nan")},
    {"round_to": None},
    {"fixed": {"a": "0.5"}},
    {"fixed": {3: 0.5}},
    {"units": (8, "8")},
    {"units": (8,)},
    {"cost": {"size_bytes": 3}},
]


@pytest.mark.parametrize("wrong", WRONG_RATIOS, ids=str)
def test_a_space_of_ratios_refuses_what_is_none(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"names": ("a", "b"), "units": (8, 8), "cost": lambda kept: {"size_bytes": 1.0}}
    with pytest.raises(InputError):
        bayesopt.RatioSpace(**{**given, **wrong})


def test_points_counts_and_limits_that_do_not_fit_are_refused() -> None:
    space = bayesopt.RatioSpace(("a", "b"), (8, 8), lambda kept: {"size_bytes": float(sum(kept.values()))})
    for call in (
        lambda: space.counts((0.5,)),
        lambda: space.costs((8,)),
        lambda: space.repair((0.5, 0.5), {"bitops": 4}),
        lambda: space.meets((8, 8), {"bitops": 4}),
        lambda: bayesopt.make_proposer("random", space, {"bitops": 4}, seed=0),
        lambda: bayesopt.make_proposer("random", space, [], seed=0),
        lambda: bayesopt.choose(Net(), GRAPH.channels, "0.5"),  # type: ignore[arg-type]
        lambda: bayesopt.choose(Net(), GRAPH.channels, {"stem": None}),  # type: ignore[dict-item]
        lambda: list(
            bayesopt.run_trials(
                bayesopt.make_proposer("random", space, {"size_bytes": 9}, seed=0), iter, total=3, batch=0
            )
        ),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            call()
    assert bayesopt.choose(trained(Net()), GRAPH.channels, np.float32(0.5)) == bayesopt.choose(
        trained(Net()), GRAPH.channels, 0.5
    )


WRONG_OPTIONS: list[dict[str, Any]] = [
    {"weight_bits": "4"},
    {"weight_bits": [9]},
    {"weight_bits": [4.0]},
    {"weight_bits": None},
    {"activation_bits": {"conv": 4}},
    {"pairs": [4, 8]},
    {"pairing": "tight"},
    {"granularity": "blocks"},
    {"ties": ["residuals"]},
    {"include": [3]},
    {"exclude": 3},
    {"fix": {"stem": 4}},
    {"fix": {"stem": "48"}},
    {"first_layer": "serach"},
]


@pytest.mark.parametrize("wrong", WRONG_OPTIONS, ids=str)
def test_options_of_a_space_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"space\.{next(iter(wrong))}"):
        dnas.SpaceOptions(**wrong)


def test_options_of_a_space_may_be_lists_arrays_and_single_values() -> None:
    plain = dnas.SpaceOptions((2, 4), (8,), include=("first",), fix={"stem": (4, 8)}, first_layer="search")
    given: Any = dnas.SpaceOptions
    assert given(np.array([2, 4]), 8, include="first", fix={"stem": [4, np.int8(8)]}, first_layer="search") == plain
    assert type(given(np.array([2, 4])).weight_bits[0]) is int


@pytest.mark.parametrize("shape", [[1, 6, 6], tuple(np.array(SHAPE)), torch.Size(SHAPE)])
def test_a_shape_is_any_row_of_whole_numbers(shape: Any) -> None:
    graph = dnas.read_graph(Net(), shape)
    assert graph.input_shape == SHAPE
    assert all(type(side) is int for side in graph.input_shape)


@pytest.mark.parametrize("shape", [None, 6, "1,6,6", (1, 6.0, 6), (1, None, 6)])
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    with pytest.raises(InputError):
        dnas.read_graph(Net(), shape)


def test_other_arguments(tmp_path: Path) -> None:
    loaded = dnas.load_model("zoo:tiny_resnet")
    with pytest.raises(InputError, match=r"LoadedModel is no network .*; give its .module"):
        dnas.read_graph(loaded, (1, 8, 8))  # type: ignore[arg-type]
    for call in (
        lambda: dnas.load_model(nn.Linear(2, 2)),  # type: ignore[arg-type]
        lambda: dnas.load_model("zoo:tiny_resnet", arguments=["width"]),  # type: ignore[arg-type]
        lambda: dnas.load_model("zoo:tiny_resnet", checkpoint=str(tmp_path / "none.pt")),
        lambda: dnas.load_data("imagefolder", root=str(tmp_path)),
        lambda: dnas.load_data(tmp_path),  # type: ignore[arg-type]
        lambda: dnas.load_job(tmp_path / "none.toml"),
        lambda: dnas.Run.open(str(tmp_path)),
        lambda: dnas.allocate(np.zeros((2, 2)), TABLE),
        lambda: dnas.allocate("zeros", TABLE),
        lambda: dnas.allocate(np.full(SPACE.allowed.shape, np.nan), TABLE),
        lambda: dnas.allocate(np.zeros(SPACE.allowed.shape), TABLE, {"size_bites": "60%"}),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert dnas.load_job("digits", "seed=3").seed == 3
    utilities = torch.zeros(SPACE.allowed.shape)
    assert dnas.allocate(utilities, TABLE, BUDGET) == dnas.allocate(
        utilities.numpy(), TABLE, dnas.parse_budget(BUDGET, TABLE)
    )
    assert dnas.LayerBits(np.int64(4), np.int64(8)) == dnas.LayerBits(4, 8)  # type: ignore[arg-type]
    assert type(dnas.LayerBits(np.int64(4), 8).weight_bits) is int  # type: ignore[arg-type]


def unsized() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


LAYERS = {layer.name: dnas.LayerBits(4, 8) for layer in GRAPH.layers}
ASSIGNMENT = dnas.BitAssignment("mine", dnas.ModelReference("toys", SHAPE), LAYERS)
CHOICE = dnas.QuantizerChoice()
WRONG_CALLS: dict[str, Callable[[], Any]] = {
    "apply to a file": lambda: dnas.apply(Net(), "mine.json"),  # type: ignore[arg-type]
    "apply a dict": lambda: dnas.apply(Net(), ASSIGNMENT.to_json()),  # type: ignore[arg-type]
    "fix missing layers": lambda: dnas.quantize_fixed(Net(), GRAPH, {"stem": dnas.LayerBits(4, 4)}),
    "fix other layers": lambda: dnas.quantize_fixed(Net(), GRAPH, {**LAYERS, "stemm": dnas.LayerBits(4, 4)}),
    "fix a number": lambda: dnas.quantize_fixed(Net(), GRAPH, 4),  # type: ignore[arg-type]
    "fix a triple": lambda: dnas.quantize_fixed(Net(), GRAPH, {"stem": (4, 8, 2)}),  # type: ignore[dict-item]
    "choice by name": lambda: dnas.quantize_fixed(Net(), GRAPH, LAYERS, "lsq"),  # type: ignore[arg-type]
    "supernet by name": lambda: dnas.Supernet(Net(), GRAPH, SPACE, TABLE, "lsq"),  # type: ignore[arg-type]
    "engine": lambda: dnas.Supernet(Net(), GRAPH, SPACE, TABLE, CHOICE, "branch"),  # type: ignore[arg-type]
    "model of an assignment": lambda: dnas.BitAssignment("mine", "zoo:x", LAYERS),  # type: ignore[arg-type]
    "text of an assignment": lambda: dnas.BitAssignment.loads(None),  # type: ignore[arg-type]
    "profiles as a list": lambda: dnas.SwitchableNet(Net(), GRAPH, [ASSIGNMENT], CHOICE),  # type: ignore[arg-type]
    "profile as a dict": lambda: dnas.SwitchableNet(Net(), GRAPH, {"a": {}}, CHOICE),  # type: ignore[dict-item]
    "space of a dict": lambda: dnas.build_space(GRAPH, {"weight_bits": [2]}),  # type: ignore[arg-type]
    "space of a network": lambda: dnas.build_space(Net(), dnas.SpaceOptions()),  # type: ignore[arg-type]
    "one cost": lambda: dnas.CostTable(GRAPH, SPACE, dnas.build_costs()[0]),  # type: ignore[arg-type]
    "cost as a function": lambda: dnas.CostTable(GRAPH, SPACE, [energy]),  # type: ignore[list-item]
    "price of an unknown layer": lambda: TABLE.price({"stemm": dnas.LayerBits(4, 4)}),
    "too few cells": lambda: SPACE.layers_of([(0, 0)]),
    "costs that lack one": lambda: dnas.Budget({"macs": 3}, "mine").met_by({"bitops": 3}),
    "costs of a graph": lambda: dnas.build_costs(GRAPH),  # type: ignore[arg-type]
    "latency as a number": lambda: dnas.build_costs(latency=5),  # type: ignore[arg-type]
    "budget without a table": lambda: dnas.parse_budget({"macs": 1}, None),  # type: ignore[arg-type]
    "job by name": lambda: dnas.plan_job("digits", Net(), SHAPE),  # type: ignore[arg-type]
    "run by name": lambda: dnas.run_job("digits", None, print),  # type: ignore[arg-type]
    "dump by name": lambda: dnas.dump_job("digits"),  # type: ignore[arg-type]
    "advice on points": lambda: dnas.advice([]),  # type: ignore[arg-type]
    "verdicts of points": lambda: dnas.verdicts([]),  # type: ignore[arg-type]
    "front of nothing": lambda: dnas.ParetoFront.from_points(None),  # type: ignore[arg-type]
    "load a number": lambda: dnas.load(5),  # type: ignore[arg-type]
    "device": lambda: dnas.evaluate(Net(), PAIRS, 8, "cpuu"),
    "batch size": lambda: dnas.evaluate(Net(), PAIRS, 0),
    "fraction": lambda: dnas.load_data("digits", validation_fraction="0.1"),  # type: ignore[arg-type]
    "limit": lambda: dnas.load_data("digits", train_limit="100"),  # type: ignore[arg-type]
    "section": lambda: dnas.Trainer(Net(), {"epochs": 1}, images=PAIRS),  # type: ignore[arg-type]
    "frozen": lambda: dnas.Trainer(Net().requires_grad_(False), FinetuneSection(), images=PAIRS),
    "section of a search": lambda: dnas.search_bits(Net(), PAIRS, BUDGET, section={"epochs": 1}),  # type: ignore[arg-type]
    "space of a search": lambda: dnas.search_bits(Net(), PAIRS, BUDGET, space={"weight_bits": [2]}),  # type: ignore[arg-type]
    "no batches": lambda: dnas.sensitivities(Net(), SPACE, CHOICE, []),
    "batches without labels": lambda: dnas.sensitivities(Net(), SPACE, CHOICE, [X]),  # type: ignore[list-item]
    "calibrate on nothing": lambda: dnas.calibrate(dnas.quantize_fixed(Net(), GRAPH, LAYERS), None),  # type: ignore[arg-type]
    "calibrate what has no shape": lambda: dnas.calibrate(nn.Sequential(nn.LazyConv2d(2, 3)), [X]),
    "load what has no shape": lambda: dnas.load_model(f"{__name__}:unsized"),
    "calibrate nothing": lambda: dnas.calibrate(None, [X]),  # type: ignore[arg-type]
    "recalibrate nothing": lambda: dnas.recalibrate_batchnorm("net", [X]),  # type: ignore[arg-type]
    "measure nothing": lambda: dnas.evaluate(None, PAIRS),  # type: ignore[arg-type]
    "cost by number": lambda: dnas.parse_budget({3: 4}, TABLE),  # type: ignore[dict-item]
    "groups as a list": lambda: bayesopt.importance(Net(), list(GRAPH.channels.groups)),  # type: ignore[arg-type]
    "group by name": lambda: bayesopt.removal_order(Net(), "stem"),  # type: ignore[arg-type]
    "taylor without labels": lambda: bayesopt.importance(Net(), GRAPH.channels, "taylor", batches=[X]),  # type: ignore[list-item]
    "units as a number": lambda: bayesopt.remove_filters(Net(), GRAPH.channels, {"stem": 1}),  # type: ignore[dict-item]
    "units as an array": lambda: bayesopt.remove_filters(Net(), GRAPH.channels, {"stem": np.arange(2)}),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_what_cannot_be_taken_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError) as caught:
        WRONG_CALLS[name]()
    assert "\n" not in str(caught.value)


def test_bits_of_layers_may_be_pairs() -> None:
    pairs: Any = dict.fromkeys(LAYERS, (4, 8))
    assert dnas.BitAssignment("mine", ASSIGNMENT.model, pairs) == ASSIGNMENT
    assert TABLE.price(pairs) == TABLE.price(LAYERS)
    model = trained(Net())
    nets = [dnas.quantize_fixed(model, GRAPH, layers) for layers in (pairs, LAYERS)]
    for net, batches in zip(nets, (X, DataLoader(PAIRS, len(Y))), strict=True):
        dnas.calibrate(net, batches)
        dnas.recalibrate_batchnorm(net, batches)
    assert torch.equal(nets[0].eval()(X), nets[1].eval()(X))


def test_a_network_in_training_mode_is_measured_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Conv2d(SHAPE[0], 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    network = nn.Sequential(normed, nn.LazyLinear(3))
    network(X)
    expected = dnas.evaluate(network.eval(), BASE)
    network.train()[0][1].eval()  # a frozen BatchNorm
    modes, before = [m.training for m in network.modules()], {k: v.clone() for k, v in network.state_dict().items()}
    assert dnas.evaluate(network, BASE) == expected
    assert [m.training for m in network.modules()] == modes
    network.train()
    assert dnas.evaluate(network, BASE) == expected
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
