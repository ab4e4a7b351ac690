"""The best net of a run is told with what its job limits: by its front, and while it runs by its job file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dnas.config.file import dump_job, load_job
from results.pareto import ParetoFront
from results.report.material import Material
from results.report.overview import overview
from results.run.folder import Run
from tests.made_runs import made_assignment, made_point

BITOPS, BOTH = {"bitops": 40_000.0}, {"latency_ms": 9.0, "size_bytes": 12_000.0}
FOUND = made_assignment("search-1", [4, 4, 4, 4])
SPARSE = "squantizer-resnet20-cifar10-4bit"
JOBS: Mapping[str, tuple[list[str], str, list[str]]] = {
    "one cost": (["search.budgets=[{bitops='4%'}]"], "bitops", ["bitops"]),
    "two costs": (["search.budgets=[{bitops=9, macs=9}, {size_bytes=4}]"], "bitops", ["bitops", "macs", "size_bytes"]),
    "no budget": (["search.budgets=[]", "search.loss='log_product'", "choice.enabled=false"], "size_bytes", []),
    "another compression": (["squantizer.budgets=[{weight_bits='4%'}]"], "size_bytes", ["weight_bits"]),
    "no search": (["pipeline=['prune']", "search.budgets=[{bitops='4%'}]"], "size_bytes", []),
}


def running(folder: Path, job: str) -> Run:
    """A run that has found and measured one net, and has no front yet."""
    with Run.create(folder, job, {}) as run:
        run.save_assignment(FOUND.with_metrics(val_top1={"mean": 0.9, "std": 0.0, "n": 1}))
        costs = {**FOUND.cost, "weight_bits": 4000.0}
        run.journal.append({"event": "started"})
        run.journal.append({"event": "decoded", "assignment": "search-1", "kind": "search", "run": "a", "cost": costs})
        run.journal.append({"event": "measured", "assignment": "search-1", "seed": 0, "val_top1": 0.9})
    return Run.open(folder)


@pytest.mark.parametrize("what", JOBS)
def test_the_best_so_far_is_told_with_the_costs_that_the_job_limits(tmp_path: Path, what: str) -> None:
    settings, x, names = JOBS[what]
    run = running(tmp_path / "run", dump_job(load_job(SPARSE if "compression" in what else "digits", settings)))
    best = overview(run).best
    assert best is not None
    assert (list(best.costs), best.size_bytes) == (names or ["size_bytes"], FOUND.cost["size_bytes"])
    assert Material.of(run).front.x == x, "the page draws over what the job's front will be over"


@pytest.mark.parametrize("job", ["", "search = 3\n", "[search]\nbudgets = [3, {bitops = 1}]\n", "compression = []\n"])
def test_a_job_file_of_anybody_is_read_for_its_budgets(tmp_path: Path, job: str) -> None:
    best = overview(running(tmp_path / "run", job)).best
    assert best is not None
    assert tuple(best.costs) == (("bitops",) if "bitops" in job else ("size_bytes",))


def test_a_changed_job_file_takes_no_net_away(tmp_path: Path) -> None:
    run = running(tmp_path / "run", dump_job(load_job("digits")))
    (run.folder / "job.toml").write_text("nonsense")
    assert overview(run).best is not None


@pytest.mark.parametrize(
    ("x", "limits", "text"),
    [
        ("size_bytes", {}, "search-1 (5,000 B, 90.00 %)"),
        ("bitops", BITOPS, "search-1 (128 kBitOps, 90.00 %)"),
        ("latency_ms", BOTH, "search-1 (5 ms, 5,000 B, 90.00 %)"),
    ],
)
def test_the_net_to_take_is_told_with_what_the_front_is_over(
    tmp_path: Path, x: str, limits: Mapping[str, float], text: str
) -> None:
    found = made_assignment("search-1", [4, 4, 4, 4], kind="search", budget="it" if limits else None, limits=limits)
    folder = running(tmp_path / "run", "").folder
    with Run.open(folder, write=True) as run:
        run.save_front(ParetoFront.from_points([made_point(found, 0.9)], x))
    best = overview(Run.open(folder)).best
    assert best is not None
    assert best.text == text
    told = {name: found.cost[name] for name in dict.fromkeys([x, *limits])}
    assert best.to_json() == {"assignment": "search-1", "size_bytes": 5000.0, "top1": 0.9, "costs": told}
