"""The fit of layers to whole nets, against nets whose layers are known."""

import numpy as np
import pytest

from dnas.latency.clock import Timing, take_turns
from dnas.latency.fit import fit

KINDS = (0, 1, 0, 1, 0, 1)


def nets(seed: int, count: int) -> np.ndarray:
    """What six parts take in some nets, by their own times: each net has some of them."""
    draw = np.random.default_rng(seed)
    return draw.uniform(0.5, 4.0, 6) * draw.integers(0, 4, (count, 6))


def test_known_factors_and_the_rest_are_found() -> None:
    alone, factors = nets(0, 40), np.array([1.3, 0.6, 1.2, 0.5, 1.6, 0.7])
    found = fit(alone, KINDS, alone @ factors + 2.0)
    np.testing.assert_allclose(found.factors, factors, rtol=0.05)
    assert found.rest_ms == pytest.approx(2.0, abs=0.3)


def test_what_no_net_tells_apart_goes_by_the_others_of_its_widths() -> None:
    alone = nets(1, 30)
    alone[:, 4] = 0.0  # of widths 0, and in no net
    found = fit(alone, KINDS, 1.5 * alone[:, ::2].sum(1) + 0.5 * alone[:, 1::2].sum(1) + 1.0)
    assert found.factors[4] == pytest.approx(1.5, rel=0.05)
    assert found.factors[1] == pytest.approx(0.5, rel=0.1)


def test_no_factor_is_negative_whatever_the_noise() -> None:
    alone = nets(2, 8)
    found = fit(alone, KINDS, np.random.default_rng(0).uniform(0.1, 30, 8))
    assert found.factors.min() > 0
    assert found.rest_ms >= 0


def test_nets_take_turns_and_the_quiet_moments_count() -> None:
    now, order = [0.0], []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        busy = len(order) % 3 == 0
        now[0] += seconds * (5 if busy else 1)

    runs = {name: (lambda name=name, s=s: run(name, s)) for name, s in (("fast", 0.001), ("slow", 0.004))}
    found = take_turns(runs, 30, lambda: now[0])
    assert order[:4] == ["fast", "slow", "fast", "slow"]
    assert found["fast"].ms == pytest.approx(1.0)
    assert found["slow"].ms == pytest.approx(4.0)
    assert found["slow"].spread > 1


def test_a_timing_tells_quantiles() -> None:
    found = Timing.of([0.001 * n for n in range(11)])
    assert (found.ms, found.median_ms, found.spread) == pytest.approx((1.0, 5.0, 1.6))
