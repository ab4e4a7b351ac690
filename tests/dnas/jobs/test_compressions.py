"""Every compression that a job file can name is there, plans like any other, and says what it does."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from dnas.config.fields import CompressionSection
from dnas.config.job import JobConfig
from dnas.jobs.compressions import COMPRESSIONS, Compression, compression_of
from search_spaces.costs.stored import STORED
from search_spaces.options import SpaceOptions
from tests.toys import Net, plan

every_compression = pytest.mark.parametrize("name", COMPRESSIONS)


def job(name: str) -> JobConfig:
    return JobConfig(compression=name, search={"budgets": [{"size_bytes": "50%"}]})


def test_the_names_are_those_of_the_job_file() -> None:
    assert set(COMPRESSIONS) == set(get_args(JobConfig.model_fields["compression"].annotation))
    own = {name for name in JobConfig.model_fields if isinstance(getattr(job("search"), name), CompressionSection)}
    assert own <= set(COMPRESSIONS)


@every_compression
def test_each_plans_and_prices(name: str) -> None:
    compression = compression_of(job(name))
    assert isinstance(compression, Compression)
    assert not inspect.isabstract(type(compression))
    assert isinstance(compression.options(job(name)), SpaceOptions)
    _, space, table = plan(Net(), weight_bits=(4,), activation_bits=(4,))
    compression.check_costs(job(name), table)
    prices, known = compression.prices(table, space.uniform(4)), table.price(space.uniform(4))
    assert {cost: prices[cost] for cost in known} == known
    assert set(prices) - set(known) <= {f"{cost}_without_index" for cost in STORED}
