"""Choosing by measuring: what is taken was judged no worse than anything it was chosen from, on images of their own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import load_job
from dnas.config.job import ChoiceSection, JobConfig
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job as LoadedJob
from dnas.jobs.run import run_job
from dnas.jobs.stages import judging
from dnas.jobs.stages.choice import Choose
from dnas.jobs.stages.judging import judge, rounds
from dnas.jobs.stages.measure import Measurer
from results.events import Judged, Measured, Pool
from results.pools import mean_loss, pools
from results.run.folder import Run
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.provenance import PROPOSAL

Job = Callable[..., JobConfig]
CHOOSING = (
    "choice.enabled=true",
    "model.arguments={width=8,stages=2}",
    "data.train_limit=80",
    "pretrain.epochs=1",
    "choice.refined=2",
    "choice.learned=2",
    "choice.finalists=2",
    "choice.from_supernet=true",
    "space.activation_bits=[8]",
    "space.weight_bits=[1,2,4,8]",
    "search.budgets=[{size_bytes='10%'},{size_bytes='8%'}]",
    "search.sample_every=2",
    "search.samples=1",
    "controls.ilp=true",
    "controls.measured_ilp=true",
    "controls.uniform=[2]",
    "controls.random=2",
    "finetune.seeds=1",
)


@pytest.fixture(scope="module")
def trained_and_judged() -> dict[str, list[Any]]:
    """The image sets that the stage trained on and judged by."""
    return {"trained": [], "judged": []}


@pytest.fixture(scope="module")
def run(
    toy: Job,
    carried_out: Callable[..., Run],
    trained_and_judged: dict[str, list[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    trainer, measure = judging.Trainer, judging.measure

    def training(*given: Any, **options: Any) -> Any:
        trained_and_judged["trained"].append(options["images"])
        return trainer(*given, **options)

    def measuring(network: Any, images: Any, *rest: Any) -> Any:
        trained_and_judged["judged"].append(images)
        return measure(network, images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "Trainer", training)
        patch.setattr(judging, "measure", measuring)
        return carried_out(toy(*CHOOSING), tmp_path_factory.mktemp("choosing") / "run")


def judged_by_round(run: Run, pool: Pool) -> dict[int, dict[str, Judged]]:
    found: dict[int, dict[str, Judged]] = {}
    for event in run.journal.events():
        if isinstance(event, Judged) and event.proposal in pool.proposals:
            found.setdefault(event.round, {})[event.proposal] = event
    return found


def pools_of(run: Run) -> list[Pool]:
    """The pools as they were in the end."""
    return list({event.run: event for event in run.journal.events() if isinstance(event, Pool)}.values())


@pytest.mark.whole
def test_the_chosen_was_judged_no_worse_than_anything_over_the_rounds_of_both(run: Run) -> None:
    for pool in pools_of(run):
        chosen = run.assignment(pool.run)
        by_round = judged_by_round(run, pool)
        assert len(by_round[1]) == len(pool.proposals) >= 4
        *halving, last = sorted(by_round)
        for number, judged in by_round.items():
            losses = {name: mean_loss([by_round[n][name] for n in range(1, number + 1)]) for name in judged}
            assert all(map(math.isfinite, losses.values()))
            if number == last:
                assert losses[chosen.provenance.run] == min(losses.values())
            elif number != halving[-1]:  # whoever was left out was no better than anyone who went on
                losses = {name: loss for name, loss in losses.items() if not run.assignment(name).provenance.start}
                on = set(by_round[number + 1]) & set(losses)
                assert len(on) == math.ceil(len(losses) / 2)
                assert max(losses[name] for name in on) <= min(losses[name] for name in set(losses) - on)
        assert chosen.pairs == run.assignment(chosen.provenance.run).pairs
        assert chosen.provenance.kind == "search"


@pytest.mark.whole
def test_finalists_are_the_best_of_the_rounds_before_and_are_judged_by_their_own_nets_on_validation(
    run: Run, toy: Job
) -> None:
    context = JobContext(toy(*CHOOSING), Run.open(run.folder), lambda event: None)
    for pool in pools_of(run):
        by_round = judged_by_round(run, pool)
        last = max(by_round)
        assert {judged.split for number in by_round for judged in by_round[number].values() if number < last} == {
            "train"
        }
        before = {n: mean_loss([by_round[r][n] for r in range(1, last)]) for n in by_round[last - 1]}
        assert sorted(by_round[last]) == sorted(sorted(before, key=lambda name: before[name])[:2])
        for name, judged in by_round[last].items():
            assert (judged.split, judged.epochs) == ("val", context.job.config.finetune.epochs)
            measured = [each for each in run.assignments().values() if "val_top1" in each.metrics]
            same = next(each for each in measured if net_of(each) == net_of(run.assignment(name)))
            found = Measurer(context).measure_again(same, 0, context.job.data.val)
            assert judged.loss == pytest.approx(found.loss, rel=1e-5)
            assert judged.score == found.score == same.metrics["val_top1"]["mean"]


@pytest.mark.parametrize(("before", "last", "order"), [((1.0, 2.0), (3.0, 2.1), "ab"), ((1.0, 2.0), (3.0, 1.9), "ba")])
def test_finalists_are_ordered_by_the_mean_over_all_rounds(
    monkeypatch: pytest.MonkeyPatch, before: tuple[float, ...], last: tuple[float, ...], order: str
) -> None:
    def judgement(name: str, loss: float) -> Judged:
        return Judged(proposal=name, round=1, epochs=1, loss=loss)

    losses = dict(zip("ab", last, strict=True))
    monkeypatch.setattr(Choose, "_judged_in_full", lambda self, name, net, number: judgement(name, losses[name]))
    monkeypatch.setattr(Choose, "_work_of_finals", lambda self, finalists: {})
    choose = Choose(MagicMock(), MagicMock())
    left: Any = [SimpleNamespace(id=name) for name in "ab"]
    judged = {name: [judgement(name, loss)] for name, loss in zip("ab", before, strict=True)}
    assert "".join(each.id for each in choose._finals(left, judged, [])) == order


@pytest.mark.whole
def test_one_net_a_budget_is_reported_and_trained_once(run: Run) -> None:
    """The finalist that is chosen, by the name of its search; none of it is trained again."""
    front = {point.assignment for point in run.load_front().points}
    for pool in pools_of(run):
        chosen = run.assignment(pool.run)
        assert {name for name in front if name.startswith(pool.run)} == {pool.run}
        trained = [event.assignment for event in run.journal.events() if isinstance(event, Measured)]
        assert [net_of(run.assignment(name)) for name in trained].count(net_of(chosen)) == 1


def net_of(assignment: BitAssignment) -> tuple[Any, str | None]:
    """What nets that train alike have in common."""
    return assignment.pairs, assignment.provenance.start


@pytest.mark.whole
def test_finalists_have_the_same_bits_from_the_supernets_weights_beside_them(run: Run, toy: Job) -> None:
    job_context = JobContext(toy(*CHOOSING), Run.open(run.folder), lambda event: None)
    warm = run.load_checkpoint("warmup")
    assert warm is not None
    for pool in pools_of(run):
        restarted = [run.assignment(name) for name in pool.proposals if run.assignment(name).provenance.start]
        assert len(restarted) == 2
        by_round = judged_by_round(run, pool)
        for each in restarted:
            (source,) = pool.proposals[each.id]
            origin = next(n for n, told in pool.proposals.items() if f"supernet-{told[0]}" == source)
            assert run.assignment(origin).pairs == each.pairs
            assert all({each.id, origin} <= by_round[number].keys() for number in range(1, max(by_round)))
            network = Measurer(job_context).fixed(each, 0)
            name, weight = next((n, p) for n, p in network.named_parameters() if n.endswith("weight") and p.ndim == 4)
            assert torch.equal(weight, warm[0][f"supernet.network.{name}"])
        chosen = run.assignment(pool.run)
        assert chosen.provenance.start == run.assignment(chosen.provenance.run).provenance.start


def test_a_start_is_chosen_by_measuring_or_by_the_job(toy: Job) -> None:
    with pytest.raises(
        InputError, match=r"choice\.from_supernet chooses .* finetune\.start = 'fresh' has chosen already"
    ):
        toy(*CHOOSING, "finetune.start=fresh")


@pytest.mark.parametrize("setting", ["search.warmup_epochs=0", "search.engine=branches"])
def test_without_weights_of_a_supernet_nothing_can_start_from_them(toy: Job, setting: str) -> None:
    with pytest.raises(InputError, match=r"choice\.from_supernet needs search\."):
        LoadedJob.of(toy(*CHOOSING, setting))


@pytest.mark.whole
def test_every_control_of_a_budget_is_in_its_pool_once_and_all_meet_it(run: Run) -> None:
    found = run.assignments()
    for pool in pools_of(run):
        number = pool.run.removeprefix("search-")
        sources = [source for proposed in pool.proposals.values() for source in proposed]
        other = {"1": "search-2", "2": "search-1"}[number]
        named = {f"ilp-{number}", f"measured-ilp-{number}", f"random-{number}-1", f"random-{number}-2"}
        assert {"theta", "draw-1", "draw-2", "draw-3", other, *named} <= set(sources)
        assert sum(source.startswith("uniform-") for source in sources) == 2
        assert sum(source.startswith("refined-") for source in sources) == 2
        assert sum(source.startswith("learned-") for source in sources) <= 2
        proposals = [found[name] for name in pool.proposals if not found[name].provenance.start]
        assert len({tuple(each.pairs.items()) for each in proposals}) == len(proposals)
        for name, proposed in pool.proposals.items():
            assert found[name].provenance.kind == PROPOSAL
            assert Budget(found[name].provenance.limits, "").met_by(found[name].cost)
            for control in named & set(proposed):
                assert found[control].pairs == found[name].pairs


@pytest.mark.whole
def test_no_image_that_judges_is_trained_on_or_reported(
    run: Run, toy: Job, trained_and_judged: dict[str, list[Any]]
) -> None:
    data = JobContext(toy(*CHOOSING), Run.open(run.folder), lambda event: None).job

    def told(images: Any) -> set[bytes]:
        return {x.numpy().tobytes() for batch, _ in images.batches(64) for x in batch}

    judging, val = told(data.search_data.theta), told(data.data.val)
    assert [told(images) for images in trained_and_judged["judged"]].count(val) == 4  # two finalists a budget
    assert all(told(images) in (judging, val) for images in trained_and_judged["judged"])
    assert trained_and_judged["trained"]
    for images in [*trained_and_judged["trained"], data.data.val, data.data.test]:
        assert not told(images) & judging
    assert {pool.images for pool in pools_of(run)} == {len(data.search_data.theta)}


@pytest.mark.whole
def test_controls_keep_their_own_training_and_rows_and_proposals_have_none(run: Run) -> None:
    points = {point["assignment"]: point for point in json.loads((run.folder / "front.json").read_text())["points"]}
    expected = {
        "search-1",
        "search-2",
        "uniform-2",
        "ilp-1",
        "ilp-2",
        "measured-ilp-1",
        "measured-ilp-2",
    }
    random = {f"random-{number}-{draw}" for number in (1, 2) for draw in (1, 2)}
    assert set(points) == expected | random | {"sampled-1-epoch2-1", "sampled-2-epoch2-1"}
    assert not [path.name for path in (run.folder / "checkpoints").iterdir() if path.name.startswith("pool-")]


@pytest.mark.whole
def test_loss_and_standard_error_are_those_of_the_images(run: Run, toy: Job) -> None:
    job = JobContext(toy(*CHOOSING), Run.open(run.folder), lambda event: None).job
    images, network = job.search_data.theta, job.network.eval()
    told = Judged(proposal="any", round=1, epochs=1, **judge(job, network, images))
    with torch.no_grad():
        x, y = next(iter(images.batches(len(images))))
        losses = F.cross_entropy(network(x), y, reduction="none").double().numpy()
        right = (network(x).argmax(1) == y).double().mean()
    size = math.ceil(len(images) / 32)
    parts = [losses[start : start + size].mean() for start in range(0, len(losses), size)]
    assert told.loss == pytest.approx(losses.mean())
    assert told.score == pytest.approx(float(right))
    assert told.losses == pytest.approx(parts)
    assert told.standard_error == pytest.approx(np.std(parts, ddof=1) / math.sqrt(len(parts)))


@pytest.mark.whole
def test_a_net_that_diverged_is_chosen_last(run: Run, toy: Job) -> None:
    job = JobContext(toy(*CHOOSING), Run.open(run.folder), lambda event: None).job
    with torch.no_grad():
        next(job.network.parameters()).fill_(math.nan)
    told = Judged(proposal="any", round=1, epochs=1, **judge(job, job.network.eval(), job.search_data.theta))
    assert told.loss is None
    assert mean_loss([told]) == math.inf
    assert "loss" not in json.loads(json.dumps(told.to_json(), allow_nan=False))


@pytest.mark.parametrize("most", range(1, 5))
@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
def test_rounds_halve_until_one_is_left(count: int, most: int) -> None:
    found = list(rounds(count, ChoiceSection(rounds=most, epochs=3)))
    assert len(found) <= most
    assert [epochs for _, epochs in found] == [3 * 2**number for number in range(len(found))]
    lefts = [left for left, _ in found]
    assert lefts == [math.ceil(count / 2**number) for number in range(len(found))]
    assert all(left > 1 for left in lefts)


@pytest.mark.whole
def test_a_larger_budget_is_nowhere_narrower_where_the_job_says_so(
    toy: Job, carried_out: Callable[..., Run], tmp_path: Path
) -> None:
    few = (
        "search.sample_every=0",
        "choice.draws=1",
        "choice.programs=1",
        "controls.random=1",
        "data.train_limit=80",
    )
    run = carried_out(toy(*CHOOSING, *few, "search.monotone=true"), tmp_path / "run")
    larger, smaller = (run.assignment(f"search-{number}").pairs for number in (1, 2))
    assert all(a >= b for layer in larger for a, b in zip(larger[layer], smaller[layer], strict=True))
    for name in pools_of(run)[1].proposals:
        proposed = run.assignment(name).pairs
        assert all(a >= b for layer in larger for a, b in zip(larger[layer], proposed[layer], strict=True))


@pytest.mark.whole
def test_a_proposal_that_is_lost_is_made_again_and_nothing_else(
    run: Run, toy: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run.folder, copied)
    lost = next(
        name for pool in pools_of(run) for name in pool.proposals if "-theta" not in name and "draw" not in name
    )
    before = {path.name: path.read_bytes() for path in (copied / "assignments").iterdir()}
    (copied / "assignments" / f"{lost}.json").unlink()
    monkeypatch.setattr(judging, "Trainer", None)
    with Run.open(copied, write=True) as again:
        run_job(toy(*CHOOSING), again, lambda event: None)
    assert {path.name: path.read_bytes() for path in (copied / "assignments").iterdir()} == before


@pytest.mark.whole
def test_a_pool_is_shown_with_what_was_free_and_what_the_search_adds(run: Run) -> None:
    result = CliRunner().invoke(app, ["show", str(run.folder), "--pool"])
    assert result.exit_code == 0, result.output
    for pool in pools(run.journal.events(), run.assignments()):
        chosen = next(each for each in pool.candidates if each.became == pool.search)
        names = [each.became for each in pool.candidates if each.became]
        assert names == [pool.search]
        assert f"{pool.search}, budget {pool.budget}: {chosen.id} is chosen" in result.stdout
        for each in pool.candidates:
            row = next(line for line in result.stdout.splitlines() if line.startswith(f"{each.id} "))
            assert row.split()[-1] == each.became or (not each.became and row.split()[-1] not in names)
            for judged in each.rounds:
                assert f"{judged.loss:.4f} ±{judged.standard_error:.4f}" in row
    shown = json.loads(CliRunner().invoke(app, ["show", str(run.folder), "--pool", "--json"]).stdout)
    assert [each["search"] for each in shown["pools"]] == ["search-1", "search-2"]
    first = shown["pools"][0]["proposals"][0]
    assert {"id", "from", "costs", "supernet_loss", "rounds", "chosen", "became"} == set(first)
    assert f"{first['supernet_loss']:.4f}" in result.stdout
    assert {"round", "epochs", "split", "loss", "standard_error", "top1"} == set(first["rounds"][0])


@pytest.mark.whole
def test_a_run_without_a_pool_and_a_pool_of_one_assignment_are_refused(toy_run: Run) -> None:
    result = CliRunner().invoke(app, ["show", str(toy_run.folder), "--pool"])
    assert result.exit_code == 2
    assert "has chosen nothing from a pool" in result.stderr
    result = CliRunner().invoke(app, ["show", str(toy_run.folder), "search-1", "--pool"])
    assert result.exit_code == 2
    assert "leave out 'search-1', or --pool" in result.stderr


def test_a_choice_needs_a_budget_and_a_search_of_the_whole_net() -> None:
    with pytest.raises(InputError, match=r"choice\.enabled needs at least one entry in search\.budgets"):
        load_job("digits", ["choice.enabled=true", "search.loss=additive", "search.budgets=[]"])
    pruned_first = load_job("digits", ["choice.enabled=true", "prune.enabled=true", 'pipeline=["prune","search"]'])
    assert not pruned_first.chooses
    assert not load_job("digits", ['compression="switchable"', "prune.enabled=false"]).chooses
