"""Budgets as people write them: every form is read as it says, and anything else is one sentence."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_spaces.costs.amounts import number_text, parse_amount
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.kinds import Cost
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.plain_json import LARGEST_FIGURE
from tests.toys import Net, plan

GRAPH, SPACE, TABLE = plan(Net())
NUMBERS = st.decimals("0.001", "999999", allow_nan=False, places=3)
FACTORS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
UNITS = ("", "B", "bytes", "bits", "BitOps", "bitops", "MACs", "macs", "ms")
SPACES = st.sampled_from(["", " ", "  "])


@given(NUMBERS, st.sampled_from(sorted(FACTORS)), st.sampled_from(UNITS), SPACES)
def test_an_absolute_amount_is_number_times_prefix(number: Any, prefix: str, unit: str, space: str) -> None:
    text = f"{number}{space}{prefix}{space if not prefix else ''}{unit}"
    assert parse_amount(text, fp32=7.0, uniform8=3.0) == pytest.approx(float(number) * FACTORS[prefix])


@given(NUMBERS, st.sampled_from(["", "of fp32", "of uniform8", "of uniform 8"]), SPACES)
def test_a_percentage_is_of_fp32_unless_it_says_uniform_8(number: Any, reference: str, space: str) -> None:
    whole = 50.0 if "uniform" in reference else 400.0
    amount = parse_amount(f"{number}{space}%{space}{reference}", fp32=400.0, uniform8=50.0)
    assert amount == pytest.approx(float(number) / 100 * whole)


@given(st.floats(1e-300, LARGEST_FIGURE) | st.integers(1, 10**100))
def test_a_number_is_itself(number: float) -> None:
    assert parse_amount(number, 0.0, 0.0) == float(number)


@given(st.text() | st.text(alphabet="0123456789.% kMGiBof uniform8fp32-", max_size=12) | st.floats() | st.integers())
@example(10**400)
@example(1e101)
@example(f"1{'0' * 200}")
@example("1e300 %")
@example("9" * 400)
@example(True)
@example(None)
@example("1e3")
@example("-5%")
@example("0%")
@example("12 % of uniform4")
def test_anything_is_a_positive_amount_or_an_input_error(given_amount: Any) -> None:
    try:
        amount = parse_amount(given_amount, 100.0, 25.0)
    except InputError:
        return
    assert 0 < amount <= LARGEST_FIGURE


@pytest.mark.parametrize("reference", ["", " of fp32", " of uniform8"])
def test_a_share_of_nothing_is_told_as_one(reference: str) -> None:
    """Where a cost is 0 in fp32 or at 8 bits, a share of it says nothing, however large it is."""
    wholes = {"fp32": 1.0, "uniform8": 1.0} | {"uniform8" if "uniform8" in reference else "fp32": 0.0}
    with pytest.raises(InputError, match=f"budget '60%{reference}' is a share of nothing: energy is 0 there; give"):
        parse_amount(f"60%{reference}", **wholes, cost=Cost("energy", "", lambda *layer: 0.0))
    assert parse_amount(f"60%{reference}", fp32=1.0, uniform8=1.0) == 0.6
    with pytest.raises(InputError, match="must be an amount above 0 and at most"):
        parse_amount(f"0%{reference}", **wholes)


@pytest.mark.parametrize(("value", "text"), [(1e90, "1e+90"), (123456.7, "123,457"), (0.001234567, "0.001235")])
def test_a_number_is_told_in_few_digits_however_large_it_is(value: float, text: str) -> None:
    assert number_text(value) == text


FITTING = {
    "size_bytes": ("B", "bytes"),
    "peak_activation_bytes": ("B", "bytes"),
    "weight_bits": ("bits",),
    "bitops": ("BitOps", "bitops"),
    "macs": ("MACs", "macs"),
    "latency": ("ms",),
    "energy": (),
    "joules": ("mJ",),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_unit_of_another_cost_is_refused(name: str) -> None:
    own = [
        Cost("latency", "ms", lambda *_: 1.0),
        Cost("energy", "", lambda *_: 1.0),
        Cost("joules", "mJ", lambda *_: 1.0),
    ]
    table = CostTable(GRAPH, SPACE, [*build_costs(), *own])
    for prefix, symbol in product(("", "k", "Mi"), ("B", "bytes", "bits", "BitOps", "bitops", "MACs", "macs", "ms")):
        amount = f"3 {prefix}{symbol}"
        if symbol in FITTING[name]:
            assert parse_budget({name: amount}, table).limits == {name: 3 * FACTORS[prefix]}
        else:
            with pytest.raises(InputError, match=f"budget '{amount}': '{symbol}' is no unit of {name}"):
                parse_budget({name: amount}, table)
    assert parse_budget({name: f"3{prefix}"}, table).limits == {name: 3 * FACTORS[prefix]}


def test_a_budget_holds_one_limit_per_cost_in_its_unit() -> None:
    budget = parse_budget({"size_bytes": "25%", "bitops": "50% of uniform8", "macs": "2k"}, TABLE)
    size, bitops = TABLE.uniform(32)["size_bytes"], TABLE.uniform(8)["bitops"]
    assert budget.limits == {"size_bytes": 0.25 * size, "bitops": 0.5 * bitops, "macs": 2000.0}
    assert budget.label == "size_bytes 25% & bitops 50% of uniform8 & macs 2k"


def test_a_budget_without_entries_or_for_an_unknown_cost_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        parse_budget({}, TABLE)
    with pytest.raises(InputError, match=r"unknown cost 'size'"):
        parse_budget({"size": "25%"}, TABLE)


def test_an_absolute_budget_asks_for_no_width_outside_the_space() -> None:
    def measured(layer: Any, weight_bits: int, activation_bits: int) -> float:
        if 32 in (weight_bits, activation_bits):
            raise InputError("not measured")
        return 1.0

    table = CostTable(GRAPH, SPACE, [*build_costs(), Cost("latency_ms", "ms", measured)])
    assert parse_budget({"latency_ms": 5, "size_bytes": "25%"}, table).limits["latency_ms"] == 5.0
    with pytest.raises(InputError, match="not measured"):
        parse_budget({"latency_ms": "25%"}, table)


def test_a_budget_is_met_up_to_its_limit_and_not_beyond() -> None:
    budget = Budget({"a": 5.0, "b": 2.0}, "both")
    assert budget.met_by({"a": 5.0, "b": 2.0, "c": 9.0})
    assert not budget.met_by({"a": 5.0, "b": math.nextafter(2.0, 3.0)})
