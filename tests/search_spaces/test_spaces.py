"""The precision space: which decisions there are, what each may choose, and what is refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.fields import LAYER_KINDS
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import LAYER_TYPES, read_graph
from search_spaces.options import SpaceOptions, read_capability
from search_spaces.spaces import PrecisionSpace, build_space
from tests.known import known_graph
from tests.toys import SHAPE, Net, SharedWeight, Unwatchable


@cache
def resnet20_graph() -> LayerGraph:
    return read_graph(resnet20(), (3, 32, 32))


def space(**options: Any) -> PrecisionSpace:
    return build_space(known_graph(Net(), SHAPE), SpaceOptions(**options))


def layers_of(space: PrecisionSpace) -> list[tuple[str, ...]]:
    return [decision.layers for decision in space.decisions]


def allowed_pairs(space: PrecisionSpace, index: int = 0) -> set[tuple[int, int]]:
    rows, columns = space.allowed[index].nonzero()
    return {space.pair(int(row), int(column)) for row, column in zip(rows, columns, strict=True)}


def test_by_default_every_inner_layer_decides_alone_and_the_ends_are_at_8() -> None:
    default = space()
    assert layers_of(default) == [("first",), ("second",)]
    assert default.fixed == {"stem": (8, 8), "head": (8, 8)}
    assert default.independent
    assert default.allowed.all()


def test_the_ends_can_be_searched_or_float() -> None:
    opened = space(first_layer="search", last_layer=32)
    assert layers_of(opened) == [("stem",), ("first",), ("second",)]
    assert opened.fixed == {"head": (32, 32)}


def test_include_exclude_and_fix_take_names_patterns_and_types() -> None:
    chosen = space(first_layer="search", exclude=("type:Linear",), fix={"s*d": (4, 8)})
    assert layers_of(chosen) == [("stem",), ("first",)]
    assert chosen.fixed == {"second": (4, 8), "head": (32, 32)}
    assert layers_of(space(include=("first",))) == [("first",)]


@pytest.mark.parametrize("options", [{"include": ("frist",)}, {"exclude": ("frist",)}, {"fix": {"frist": (4, 4)}}])
def test_a_pattern_that_fits_no_layer_names_the_nearest(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'frist', which fits no layer; did you mean 'first'"):
        space(**options)


def test_a_group_that_fits_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"groups names 'layer9\.\?'"):
        space(groups=("layer9.?",))


def test_resnet20_has_nine_block_decisions_named_after_their_blocks() -> None:
    blocks = build_space(resnet20_graph(), SpaceOptions(granularity="block", weight_bits=(0, 4, 8)))
    assert [d.name for d in blocks.decisions] == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert all(d.layers == (f"{d.name}.conv1", f"{d.name}.conv2") for d in blocks.decisions)
    assert [d.branch.terminal for d in blocks.decisions if d.branch] == [f"{d.name}.bn2" for d in blocks.decisions]


def test_a_group_pattern_joins_the_layers_below_each_module_it_fits() -> None:
    by_block = build_space(resnet20_graph(), SpaceOptions(groups=("layer*.?",)))
    by_stage = build_space(resnet20_graph(), SpaceOptions(groups=("layer?",)))
    assert ([len(d.layers) for d in by_block.decisions], [d.name for d in by_stage.decisions]) == (
        [2] * 9,
        ["layer1", "layer2", "layer3"],
    )


def test_ties_join_what_is_added_and_what_reads_one_tensor() -> None:
    assert layers_of(space(first_layer="search", ties=("residual",))) == [("stem", "second"), ("first",)]

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            return self.head(self.left(x) * self.right(x))

    tied = build_space(read_graph(Fork(), (4,)), SpaceOptions(first_layer="search", ties=("shared_inputs",)))
    assert layers_of(tied) == [("left", "right")]


def test_layers_that_share_a_weight_share_the_decision() -> None:
    graph = read_graph(SharedWeight(), SHAPE)
    assert layers_of(build_space(graph, SpaceOptions(first_layer="search"))) == [("first", "second")]


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({"weight_bits": (2, 4), "activation_bits": (3, 8)}, {(2, 3), (2, 8), (4, 3), (4, 8)}),
        ({"weight_bits": (8, 2, 4), "pairing": "tied"}, {(2, 2), (4, 4), (8, 8)}),
        ({"pairs": ((1, 4), (3, 3), (32, 32)), "pairing": "pairs"}, {(1, 4), (3, 3), (32, 32)}),
    ],
)
def test_the_pairs_on_offer_are_those_asked_for(options: dict[str, Any], pairs: set[tuple[int, int]]) -> None:
    assert allowed_pairs(space(**options)) == pairs


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": (0, 2, 4), "activation_bits": (3, 8)},
        {"weight_bits": (0, 2, 4), "pairing": "tied"},
        {"pairs": ((0, 0), (1, 4), (3, 3)), "pairing": "pairs"},
    ],
)
def test_a_whole_branch_can_be_skipped_whatever_the_pairing(options: dict[str, Any]) -> None:
    blocks = space(granularity="block", **options)
    assert layers_of(blocks) == [("first", "second")]
    assert (0, 0) in allowed_pairs(blocks)
    skipped = blocks.layers_of([(0, len(blocks.activation_bits) - 1)])
    assert skipped["first"] == skipped["second"] == LayerBits(0, 0)


def test_0_bits_are_refused_by_name_where_no_branch_can_be_dropped() -> None:
    with pytest.raises(InputError, match=r"0 bits cannot be offered for 'first' \(first\).*not exactly one residual"):
        space(weight_bits=(0, 4))
    with pytest.raises(InputError, match="0 bits cannot be offered for 'stem'"):
        space(weight_bits=(0, 4), granularity="block", first_layer="search")


def test_block_granularity_without_its_calls_says_why() -> None:
    with pytest.raises(InputError, match=r"'block' needs the residual branches: its calls cannot be followed"):
        build_space(read_graph(Unwatchable(), SHAPE), SpaceOptions(granularity="block"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": (2, 9)}, "9 is not a bit-width"),
        ({"activation_bits": (0, 4)}, "0 is possible only among weight_bits"),
        ({"weight_bits": (0,)}, "offers no bit-width"),
        ({"activation_bits": ()}, "offers no bit-width"),
        ({"exclude": ("*",)}, "all 4 layers are fixed or excluded"),
    ],
)
def test_a_space_without_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        space(**options)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no layer that can be searched"):
        build_space(read_graph(nn.Sequential(nn.ReLU()), (4,)), SpaceOptions())


def test_a_capability_file_restricts_each_type_of_layer(tmp_path: Path) -> None:
    path = tmp_path / "target.json"
    path.write_text(json.dumps({"pairs": [[4, 8], [8, 8], [2, 2]], "by_type": {"Linear": [[8, 8]]}}))
    capable = space(
        weight_bits=(2, 4, 8), activation_bits=(2, 8), last_layer="search", capability=read_capability(path)
    )
    assert allowed_pairs(capable, 0) == {(4, 8), (8, 8), (2, 2)}
    assert allowed_pairs(capable, 2) == {(8, 8)}
    named = space(weight_bits=(2, 4, 8), activation_bits=(2, 8), last_layer="search", capability=path)
    assert np.array_equal(named.allowed, capable.allowed)
    assert not capable.independent  # {(4, 8), (2, 2)} is no product of rows and columns


def test_a_capability_that_leaves_nothing_is_told() -> None:
    with pytest.raises(InputError, match="decision 'first': the capability file allows none"):
        space(weight_bits=(2,), capability={"*": ((8, 8),)})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", r"\[\]: expected a table"),
        ("{}", "it has no 'pairs'"),
        ('{"pairs": 3}', "pairs = 3: expected a list"),
        ('{"pairs": [[1]]}', r"pairs\[0\] = \[1\]: expected 2 values"),
        ('{"pairs": [["8", 1]]}', r'pairs\[0\]\[0\] = "8": expected a whole number'),
        ('{"pairs": [[4.5, 1]]}', r"pairs\[0\]\[0\] = 4\.5: expected a whole number"),
        ('{"pairs": [[8, 8], [9, 8]]}', r"pairs\[1\]\[0\] = 9: 9 is not a bit-width; choose from 0, 1,"),
        ('{"pairs": [[-4, 8]]}', "-4 is not a bit-width"),
        ('{"pairs": [[8, 0]]}', "a skipped branch has 0 bits for both"),
        ('{"pairs": [], "by_type": {"Linear": [[8, 12]]}}', r"by_type\.Linear\[0\]\[1\] = 12: 12 is not a bit-width"),
        (
            '{"pairs": [], "by_type": {"linear": []}}',
            "'linear' is not a type of layer; choose from .*; did you mean 'Linear'",
        ),
        ('{"pairs": [], "by_types": {}}', "'by_types' is not a key that it may have"),
    ],
)
def test_what_is_wrong_in_a_capability_file_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "target.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"capability file .*target\.json:? .*{sentence}.*[;?] it holds ") as caught:
        read_capability(path)
    assert "\n" not in str(caught.value)


def test_a_capability_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert {kind.__name__ for kind in LAYER_TYPES} == set(LAYER_KINDS)
    (tmp_path / "latin.json").write_bytes(b"\xff")
    for name, sentence in (
        ("missing.json", "No such file"),
        ("", "it is a folder"),
        ("latin.json", "is not JSON"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_capability(tmp_path / name)
    with pytest.raises(InputError, match=r"space\.capability = .*'conv' is not a type of layer"):
        space(capability={"conv": ((8, 8),)})


def test_the_uniform_control_leaves_fixed_layers_as_they_are() -> None:
    uniform = space(fix={"second": (4, 8)}).uniform(2, 3)
    assert uniform == {
        "stem": LayerBits(8, 8), "head": LayerBits(8, 8), "second": LayerBits(4, 8), "first": LayerBits(2, 3)
    }  # fmt: skip
