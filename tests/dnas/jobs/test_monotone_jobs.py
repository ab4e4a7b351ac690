"""`search.monotone` in whole jobs: nowhere narrower under a larger budget, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dnas.config.file import dump_job
from dnas.config.job import JobConfig, SearchSection
from dnas.data.image_sets import DataSplits
from dnas.jobs.api import search_bits
from dnas.jobs.run import run_job
from results.run.folder import Run
from results.run.journal import Journal
from results.run.status import run_status
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.options import SpaceOptions
from tests.toys import SHAPE, Net, images, trained

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]
Event = dict[str, Any]
THREE = (
    "model.arguments={width=4}",
    "search.budgets=[{size_bytes='14%'},{size_bytes='20%'},{size_bytes='17%'}]",
    "search.theta_learning_rate=0.5",
    "pretrain.epochs=0",
    "finetune.epochs=0",
    "controls.uniform=[]",
    "controls.ilp=false",
)
MONOTONE = "search.monotone=true"
FROM_LARGEST = ["search-2", "search-3", "search-1"]


def identity(record: Event) -> str:
    return json.dumps({key: value for key, value in record.items() if key not in ("time", "seconds")}, sort_keys=True)


def history(run: Run) -> list[str]:
    lasting = ("note", "epoch", "decoded", "searched", "measured", "tested", "finished")
    return [identity(record) for record in run.journal.records() if record["event"] in lasting]


def searched(run: Run) -> list[str]:
    return [record["run"] for record in run.journal.records() if record["event"] == "searched"]


def epochs(run: Run) -> list[str]:
    """What the epochs that train θ left in the journal, whatever their order."""
    records = [record for record in run.journal.records() if record.get("stage") == "search"]
    return sorted(identity(record) for record in records if record["event"] == "epoch")


def saved(run: Run, *names: str) -> list[bytes]:
    return [(run.folder / "assignments" / f"{name}.json").read_bytes() for name in names]


def wider_in_the_smaller(smaller: BitAssignment, larger: BitAssignment) -> list[str]:
    """Layers with more bits of either kind in the assignment of the smaller budget."""
    assert smaller.layers.keys() == larger.layers.keys()
    pairs = {name: (bits, larger.layers[name]) for name, bits in smaller.layers.items()}
    return [n for n, (s, g) in pairs.items() if s.weight_bits > g.weight_bits or s.activation_bits > g.activation_bits]


@pytest.fixture(scope="module")
def unbounded(smaller: Job, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(smaller(*THREE), tmp_path_factory.mktemp("unbounded") / "run")


@pytest.fixture(scope="module")
def monotone(smaller: Job, carried_out: CarriedOut, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(smaller(*THREE, MONOTONE), tmp_path_factory.mktemp("monotone") / "run")


@pytest.mark.whole
def test_no_layer_is_wider_under_a_smaller_budget(monotone: Run, unbounded: Run) -> None:
    chain = [monotone.assignment(name) for name in FROM_LARGEST]
    assert [wider_in_the_smaller(s, g) for g, s in pairwise(chain)] == [[], []]
    for assignment in chain:
        assert assignment.cost["size_bytes"] <= assignment.provenance.limits["size_bytes"]
    assert chain[0].layers != chain[1].layers != chain[2].layers
    free = [unbounded.assignment(name) for name in FROM_LARGEST]
    assert any(wider_in_the_smaller(s, g) for g, s in pairwise(free))


@pytest.mark.whole
def test_only_the_projection_changes(monotone: Run, unbounded: Run) -> None:
    assert searched(unbounded) == ["search-1", "search-2", "search-3"]
    assert searched(monotone) == FROM_LARGEST
    assert len(epochs(monotone)) == 3
    assert epochs(monotone) == epochs(unbounded)
    assert saved(monotone, "search-2") == saved(unbounded, "search-2")
    assert saved(monotone, "search-3", "search-1") != saved(unbounded, "search-3", "search-1")


def test_a_budget_alone_is_searched_as_without_it(
    smaller: Job, smaller_run: Run, carried_out: CarriedOut, tmp_path: Path
) -> None:
    run = carried_out(smaller(MONOTONE), tmp_path / "run")
    assert history(run) == history(smaller_run)
    assert (run.folder / "front.json").read_bytes() == (smaller_run.folder / "front.json").read_bytes()


class Killed(BaseException):
    """What no code but this test catches."""


@pytest.mark.whole
def test_a_kill_before_any_projection_and_after_it_changes_nothing(
    smaller: Job, monotone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, append = smaller(*THREE, MONOTONE), Journal.append
    seen: set[str] = set()

    def deadly(journal: Journal, record: Event) -> None:
        if record["event"] in ("decoded", "searched") and identity(record) not in seen:
            seen.add(identity(record))
            raise Killed
        append(journal, record)

    monkeypatch.setattr(Journal, "append", deadly)
    run, kills = Run.create(tmp_path / "run", dump_job(config), {}), 0
    while run_status(run).state != "finished":
        run.close()
        run = Run.open(tmp_path / "run", write=True)
        try:
            run_job(config, run, lambda event: None)
        except Killed:
            kills += 1
    run.close()
    assert kills == 6
    assert history(run) == history(monotone)
    assert saved(run, *FROM_LARGEST) == saved(monotone, *FROM_LARGEST)


@pytest.mark.whole
def test_a_search_of_a_pruned_net_is_monotone_too(smaller: Job, carried_out: CarriedOut, tmp_path: Path) -> None:
    pruning = (
        "prune.enabled=true",
        "pipeline=['prune','search']",
        "prune.assignments=['uniform-8']",
        "prune.budgets=[{size_bytes='70%'}]",
        "prune.trials=1",
        "prune.finalists=1",
        "prune.finetune_epochs=0",
        "prune.controls=[]",
        "prune.proposer=random",
        "controls.uniform=[8]",
    )
    run = carried_out(smaller(*THREE, MONOTONE, *pruning), tmp_path / "run")
    names = [f"pruned-{name}" for name in FROM_LARGEST]
    assert searched(run) == names
    chain = [run.assignment(name) for name in names]
    assert all(assignment.provenance.parent == "uniform-8-pruned-1" for assignment in chain)
    assert [wider_in_the_smaller(s, g) for g, s in pairwise(chain)] == [[], []]


def test_a_space_that_a_bound_could_close_is_refused_before_any_training(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    crossed = ("space.pairing=pairs", "space.pairs=[[2,8],[8,4],[8,8]]")
    with pytest.raises(InputError, match=r"^search\.monotone: '.*' has no choice that is the narrowest in weights and"):
        carried_out(smaller(*THREE, *crossed, MONOTONE, "pretrain.epochs=1"), tmp_path / "run")
    assert not any(record["event"] == "epoch" for record in Run.open(tmp_path / "run").journal.records())


def test_the_search_from_python_is_monotone_too() -> None:
    data = DataSplits(images(48), images(12, seed=1), images(12, seed=2), 3, SHAPE)
    section = SearchSection(warmup_epochs=0, epochs=1, theta_learning_rate=2.0)
    options = SpaceOptions(weight_bits=(2, 3, 4, 8), activation_bits=(2, 4, 8), first_layer="search")
    budgets = [{"bitops": share} for share in ("1.0%", "1.6%", "1.3%")]

    def found(monotone: bool) -> list[BitAssignment]:
        given = section.model_copy(update={"monotone": monotone})
        return search_bits(trained(Net()), data, budgets, space=options, section=given, batch_size=8)

    free, bounded = found(False), found(True)
    assert [assignment.id for assignment in bounded] == ["search-1", "search-2", "search-3"]
    assert [assignment.provenance.budget for assignment in bounded] == ["bitops 1.0%", "bitops 1.6%", "bitops 1.3%"]
    assert bounded[1] == free[1]
    assert any(wider_in_the_smaller(free[small], free[large]) for small, large in ((2, 1), (0, 2)))
    assert not any(wider_in_the_smaller(bounded[small], bounded[large]) for small, large in ((2, 1), (0, 2)))
