"""A whole SQuantizer job: its nets, sizes, controls and front; every budget met; a kill anywhere changes nothing."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.jobs.run import evaluate_assignment, run_job
from dnas.squantizer.quantizer import codes_of
from results.run.folder import Run
from results.tables.report import front_rows, render_table
from results.tables.verdicts import verdicts
from search_spaces.errors import InputError
from search_spaces.sparse_weights.codes import decode, encode
from tests.dnas.jobs.kills import LASTING, history, identity, killed_everywhere, outcome

Job = Callable[..., JobConfig]
SPARSE = (
    "model.arguments={width=4}",
    "compression=squantizer",
    "search.budgets=[]",
    "prune.enabled=false",
    "squantizer.weight_bits=[3]",
    "squantizer.sigma=[0.5]",
    "squantizer.sigmas={'layer1.*.conv1'=-1.0}",
    "squantizer.budgets=[{size_bytes='17%'}]",
    "squantizer.exclude=['layer2.0.conv1']",
    "finetune.epochs=3",
    "finetune.seeds=2",
    "finetune.learning_rate=0.1",
    "controls.uniform=[3]",
)


@pytest.fixture(scope="module")
def sparse_job(smaller: Job) -> Job:
    return lambda *settings: smaller(*SPARSE, *settings)


@pytest.fixture(scope="module")
def uninterrupted(sparse_job: Job, carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(sparse_job(), tmp_path_factory.mktemp("squantizer") / "run")


@pytest.mark.whole
def test_each_setting_is_a_point_beside_the_uniform_control(uninterrupted: Run) -> None:
    points = {point.assignment: point for point in uninterrupted.load_front().points}
    kinds = {"sq3-sigma0.5": "squantizer", "sq3-budget1": "squantizer", "uniform-3": "uniform"}
    assert {name: point.kind for name, point in points.items()} == kinds
    for point in points.values():
        assert point.val.n == 2
        assert point.test is not None
    dense = uninterrupted.assignment("uniform-3")
    assert dense.pairs == uninterrupted.assignment("sq3-sigma0.5").pairs  # the same layers at the same bits, but dense
    assert dense.pairs["conv1"] == dense.pairs["linear"] == dense.pairs["layer2.0.conv1"] == (32, 32)
    assert dense.cost["size_bytes_without_index"] == dense.cost["size_bytes"]
    assert points["sq3-budget1"].feasible


@pytest.mark.whole
def test_the_layers_have_their_sigmas_and_the_sizes_of_the_trained_weights(uninterrupted: Run) -> None:
    for name in ("sq3-sigma0.5", "sq3-budget1"):
        assignment = uninterrupted.assignment(name)
        told = assignment.metrics["compression"]
        assert assignment.cost["size_bytes"] == max(told["size_bytes_of_seeds"])
        seed = told["size_bytes_of_seeds"].index(assignment.cost["size_bytes"])
        saved = uninterrupted.load_checkpoint(f"net-{name}-seed{seed}")
        assert saved is not None
        for layer, bits in assignment.layers.items():
            if bits.scheme is None:
                assert layer in ("conv1", "linear", "layer2.0.conv1")
                continue
            codes = codes_of(saved[0][f"{layer}.weight"], bits.weight_bits, bits.scheme)
            assert bits.scheme.nonzeros == np.count_nonzero(codes)
            assert bits.scheme.storage is not None
            data = encode(codes, bits.scheme.storage, 3, 4)
            assert len(data) == -(-(bits.scheme.stored_bits or 0) // 8)
            back = decode(data, bits.scheme.storage, codes.shape, bits.scheme.nonzeros, 3, 4)
            assert np.array_equal(back, codes)
        assert 0 < told["sparsity"] < 1
        assert told["without_index"] > told["with_index"] > 1
        assert told["weights_without_index"] > told["weights_with_index"] > told["with_index"]
    sigmas = {n: b.scheme.sigma for n, b in uninterrupted.assignment("sq3-sigma0.5").layers.items() if b.scheme}
    assert sigmas["layer1.0.conv1"] == -1.0
    assert set(sigmas.values()) == {-1.0, 0.5}


@pytest.mark.whole
def test_a_budget_is_met_by_the_net_of_every_seed(uninterrupted: Run) -> None:
    assignment = uninterrupted.assignment("sq3-budget1")
    limit = assignment.provenance.limits["size_bytes"]
    assert 0.8 * limit < min(assignment.metrics["compression"]["size_bytes_of_seeds"])
    assert max(assignment.metrics["compression"]["size_bytes_of_seeds"]) <= limit


@pytest.mark.whole
def test_the_report_tells_the_ratio_with_and_without_index(uninterrupted: Run) -> None:
    front = uninterrupted.load_front()
    rows = {row["id"]: row for row in front_rows(front)}
    assert rows["sq3-sigma0.5"]["times_smaller_without_index"] > rows["sq3-sigma0.5"]["times_smaller"]
    assert rows["uniform-3"]["times_smaller_without_index"] == rows["uniform-3"]["times_smaller"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(list(rows.values())))
    shown = console.export_text()
    assert "no index" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert [line for line in shown.splitlines() if line.startswith("sq3-sigma0.5  SQuant")]
    told = verdicts(front)
    assert len(told) == 2
    assert any(text.startswith("squantizer 'sq3-sigma0.5'") for text in told)
    assert any(text.startswith("budget size_bytes 17%: squantizer 'sq3-budget1'") for text in told)


@pytest.mark.whole
def test_the_costs_shown_of_each_layer_add_up_to_the_file(uninterrupted: Run) -> None:
    shown = CliRunner().invoke(app, ["show", str(uninterrupted.folder), "sq3-budget1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    layers = [line.split() for line in shown.output.splitlines() if line.startswith(("conv1", "layer", "linear"))][1:]
    assert len(layers) == 8
    sizes = sum(int(words[words.index("B") - 1].replace(",", "")) for words in layers)
    assert sizes == uninterrupted.assignment("sq3-budget1").cost["size_bytes"]
    assert "stored as" in shown.output


@pytest.mark.whole
def test_a_finished_net_is_measured_again_as_it_was(uninterrupted: Run) -> None:
    for name in ("sq3-sigma0.5", "sq3-budget1"):
        again = evaluate_assignment(uninterrupted, name, "val", lambda event: None)
        assert again["top1"] == uninterrupted.assignment(name).metrics["val_top1"]


@pytest.mark.whole
def test_a_kill_around_any_journal_entry_changes_nothing(
    sparse_job: Job, carried_out: Callable[..., Run], tmp_path: Path
) -> None:
    config = sparse_job("squantizer.sigma=[]", "finetune.epochs=2", "finetune.seeds=1", "controls.uniform=[]")
    whole = carried_out(config, tmp_path / "whole")
    run, places = killed_everywhere(config, tmp_path / "run", entry=lambda record: record["event"] in LASTING)
    assert len(places) == len(history(whole)) > 7
    assert history(run) == history(whole)
    assert outcome(run) == outcome(whole)


@pytest.mark.whole
def test_a_sigma_for_each_layer_is_searched_within_the_budget(
    sparse_job: Job, carried_out: Callable[..., Run], tmp_path: Path
) -> None:
    settings = ("squantizer.trials=4", "squantizer.sigma=[]", "finetune.epochs=1", "finetune.seeds=1")
    config = sparse_job(*settings, "controls.uniform=[]")
    whole = carried_out(config, tmp_path / "whole")
    trials = [record["trial"] for record in whole.journal.records() if record["event"] == "trial"]
    assert len(trials) == 4
    limit = whole.assignment("sq3-layers1").provenance.limits["size_bytes"]
    assert all(0.95 * limit < trial["cost"]["size_bytes"] <= limit for trial in trials)
    decoded = {r["assignment"]: r["cost"] for r in whole.journal.records() if r["event"] == "decoded"}
    best = min(trials, key=lambda trial: trial["loss"])
    assert decoded["sq3-layers1"]["size_bytes"] == best["cost"]["size_bytes"]
    layers = whole.assignment("sq3-layers1").layers
    free = {n: b.scheme.sigma for n, b in layers.items() if b.scheme and n != "layer1.0.conv1"}
    assert set(free) == set(best["proposal"]["counts"])
    assert len(set(free.values())) > 1
    assert whole.assignment("sq3-layers1").cost["size_bytes"] <= limit

    drawn = CliRunner().invoke(app, ["plot", str(tmp_path / "whole")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "whole" / "trials-sq3-layers1.png").exists()

    run, places = killed_everywhere(config, tmp_path / "run", entry=lambda record: record["event"] == "trial")
    assert places == [identity(r) for r in whole.journal.records() if r["event"] == "trial"]
    assert outcome(run) == outcome(whole)


def test_a_layer_that_lost_all_its_weights_is_told(
    sparse_job: Job, carried_out: Callable[..., Run], tmp_path: Path
) -> None:
    settings = ("squantizer.sigmas={'layer2.0.conv2'=50.0}", "squantizer.budgets=[]", "controls.uniform=[]")
    run = carried_out(sparse_job(*settings, "finetune.epochs=1", "finetune.seeds=1"), tmp_path / "run")
    sparse = run.assignment("sq3-sigma0.5").layers["layer2.0.conv2"].scheme
    assert sparse is not None
    assert (sparse.nonzeros, sparse.stored_bits) == (0, 0)
    notes = [record["text"] for record in run.journal.records() if record["event"] == "note"]
    assert "sq3-sigma0.5: no weight stayed in layer2.0.conv2; lower their σ" in notes


@pytest.mark.whole
def test_the_whole_work_is_counted(sparse_job: Job, tmp_path: Path) -> None:
    shares: list[float] = []
    config = sparse_job("finetune.epochs=1", "finetune.seeds=1", "squantizer.trials=2")
    with Run.create(tmp_path / "run", dump_job(config), {}) as run:
        run_job(config, run, lambda event: shares.append(event.get("fraction", 0.0)))
    assert shares.index(1.0) == max(i for i, share in enumerate(shares) if share)
    stages = Counter(r["stage"] for r in run.journal.records() if r["event"] == "stage" and r["state"] == "start")
    assert Counter(["pretrain", "squantizer", "controls", "measure", "test"]) <= stages
    assert "search" not in stages


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("squantizer.sigma=[]", "squantizer.budgets=[]"), "needs an entry in squantizer.sigma or squantizer.budgets"),
        (
            ("squantizer.order=quantize-first", "squantizer.weight_bits=[1]"),
            "needs squantizer.weight_bits of at least 2",
        ),
        (("prune.enabled=true",), "set prune.enabled = false"),
        (("finetune.start=supernet",), "finetune.start = 'supernet' needs compression = 'search'"),
        (("squantizer.trials=2", "squantizer.budgets=[]"), "squantizer.trials needs an entry in squantizer.budgets"),
        (("squantizer.trials=2", "finetune.start=fresh"), "squantizer.trials needs a trained network"),
        (("squantizer.delay=1.0",), "squantizer.delay"),
        (("squantizer.weight_bits=[16]",), "squantizer.weight_bits"),
    ],
)
def test_a_job_that_cannot_be_is_refused_when_it_is_read(settings: tuple[str, ...], told: str, sparse_job: Job) -> None:
    with pytest.raises(InputError, match=told):
        sparse_job(*settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("squantizer.sigmas={'nowhere*'=1.0}",), "'nowhere\\*' fits none of the sparse layers"),
        (("squantizer.sigmas={'*'=1.0}",), "needs a layer whose σ is free"),
        (("squantizer.budgets=[{bitops='5%'}]",), "sparsity does not change 'bitops'; limit size_bytes or weight_bits"),
        (
            ("squantizer.budgets=[{size_bytes='17%',bitops='5%'}]",),
            "sparsity does not change 'bitops', which is .* at 3 bits and over 'size_bytes 17% & bitops 5%'",
        ),
        (("squantizer.budgets=[{size_bytes=900}]",), "at 3 bits size_bytes 900 is out of reach"),
        (("squantizer.exclude=['nowhere']",), "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    settings: tuple[str, ...], told: str, sparse_job: Job, tmp_path: Path
) -> None:
    config = sparse_job(*settings)
    with Run.create(tmp_path / "run", dump_job(config), {}) as run, pytest.raises(InputError, match=told):
        run_job(config, run, lambda event: None)
    assert not [record for record in run.journal.records() if record["event"] == "epoch"]


def test_the_job_file_survives_being_written_out(sparse_job: Job, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(dump_job(sparse_job()))
    assert load_job(str(path)) == sparse_job()
    assert json.loads(load_job(str(path)).model_dump_json())["squantizer"]["sigma"] == [0.5]
