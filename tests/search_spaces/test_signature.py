"""What a network is called with goes through a file, and whatever is wrong with it is one sentence."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from search_spaces.signature import DTYPES, Signature, TensorSpec

TENSORS = st.builds(
    TensorSpec, st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(DTYPES), st.just(-1), st.just(3)
)


class Pair(NamedTuple):
    """What some networks take."""

    first: Any
    second: Any


def few(values: Any) -> Any:
    return st.lists(values, max_size=2)


def named(values: Any) -> Any:
    return st.dictionaries(st.text(max_size=2), values, max_size=2)


VALUES = st.recursive(
    TENSORS | st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.floats(-1, 1),
    lambda inner: (
        few(inner)
        | few(inner).map(tuple)
        | named(inner)
        | named(inner).map(OrderedDict)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=5,
)
TENSOR = {"shape": [2], "dtype": "int64", "least": 0, "most": 4}


@given(st.builds(Signature, few(VALUES).map(tuple), named(VALUES), st.booleans()))
def test_a_signature_is_read_as_it_was_written(signature: Signature) -> None:
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"tensor": {**TENSOR, "dtype": "object"}}, "an input of type 'object' is none of float16"),
        ({"tensor": {**TENSOR, "least": 9}}, "the least number of an input, 9, is above the greatest, 4"),
        ({"tensor": {**TENSOR, "most": 2**40}}, "most"),
        ({"tensor": {**TENSOR, "shape": [-1]}}, "shape"),
        ({"tensor": {**TENSOR, "shape": [2**13, 2**14]}}, "inputs of more than 67,108,864 numbers"),
        ({"tensor": 3}, "Input should be|must be|expected"),
        ({"set": []}, "is none of the tensors, values, tuples, lists and dicts"),
        ({"list": {}}, "is none of the tensors"),
        ({"OrderedDict": []}, "is none of the tensors"),
        ({"namedtuple": {"Pair": []}}, "is none of the tensors"),
        ({"namedtuple": {"Pair": {}, "Other": {}}}, "is none of the tensors"),
        ({"namedtuple": {"import os": {}}}, "'import os' is no named tuple that a network is called with"),
        ({"namedtuple": {"Pair": {"_own": {"value": 1}}}}, "'Pair' is no named tuple .*underscore"),
        ({"namedtuple": {"Pair": {"class": {"value": 1}}}}, "'Pair' is no named tuple .*keyword"),
        ({"value": []}, "is none of the tensors"),
        ([], "is none of the tensors"),
    ],
)
def test_what_is_no_signature_is_told(told: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Signature.from_json({"args": [told], "kwargs": {}, "batched": True})


def test_a_value_that_no_file_holds_is_named() -> None:
    with pytest.raises(InputError, match="the network is called with a complex, which no file can hold"):
        Signature((1j,)).to_json()


def test_what_no_file_could_be_read_with_is_not_written() -> None:
    with pytest.raises(InputError, match="called with a tensor of uint16, which no file can hold"):
        Signature((TensorSpec((2,), "uint16"),)).to_json()


Other = namedtuple("Other", "first second")


@pytest.mark.parametrize("kind", [Pair, Other])
def test_named_tuples_keep_their_names(kind: Any) -> None:
    signature = Signature((kind(1, TensorSpec((2,))),), {"more": [kind(kind(1, 2), 3)]})
    changed, _ = signature.map(lambda leaf: (leaf,))
    assert changed == (kind((1,), (TensorSpec((2,)),)),)
    assert type(changed[0]) is kind
    again = Signature.from_json(json.loads(json.dumps(signature.to_json())))
    read, (nested,) = again.args[0], again.kwargs["more"]
    assert (type(read).__name__, read._fields, read.second) == (kind.__name__, ("first", "second"), TensorSpec((2,)))
    assert type(read) is type(nested) is type(nested.first), "structures of tensors are told apart by their class"


def test_an_ordered_dict_is_read_as_one() -> None:
    signature = Signature((OrderedDict(b=TensorSpec((2,)), a=OrderedDict(c=1)),))
    (read,) = Signature.from_json(json.loads(json.dumps(signature.to_json()))).args
    assert (type(read), type(read["a"]), [*read]) == (OrderedDict, OrderedDict, ["b", "a"])
    ((changed,), _) = signature.map(lambda leaf: leaf)
    assert (type(changed), type(changed["a"])) == (OrderedDict, OrderedDict)


def test_a_dict_of_another_kind_is_read_as_a_plain_one() -> None:
    signature = Signature((defaultdict(list, b=TensorSpec((2,)), a=1),))
    assert Signature.from_json(signature.to_json()) == Signature(({"b": TensorSpec((2,)), "a": 1},))
