import pytest

from results.events import StageEvent, read_event
from results.run.folder import Run
from results.run.status import run_status, status_of

STARTED = read_event({"event": "started", "time": 1.0})
EPOCH = read_event({"event": "epoch", "stage": "search", "run": "search-2", "epoch": 3, "epochs": 20, "time": 2.0})
STAGE = read_event({"event": "stage", "stage": "finetune", "state": "start", "time": 3.0})
FAILED = read_event({"event": "failed", "message": "the loss is NaN", "time": 4.0})
RESUMED = read_event({"event": "resumed", "time": 5.0})
NOTE = read_event({"event": "note", "text": "collapse", "time": 6.0})
FINISHED = read_event({"event": "finished", "time": 7.0})


@pytest.mark.parametrize(
    ("records", "held", "state"),
    [
        ([], False, "interrupted"),
        ([], True, "running"),
        ([STARTED, EPOCH], True, "running"),
        ([STARTED, EPOCH], False, "interrupted"),
        ([STARTED, FAILED], False, "failed"),
        ([STARTED, FAILED], True, "running"),
        ([STARTED, FAILED, RESUMED], False, "interrupted"),
        ([STARTED, FINISHED, NOTE], False, "finished"),
        ([STARTED, FINISHED], True, "finished"),
    ],
)
def test_state(records, held, state):
    assert status_of(records, held).state == state


def test_place_message_and_times():
    status = status_of([STARTED, EPOCH, NOTE], held=False)
    assert (status.stage, status.label, status.epoch, status.epochs) == ("search", "search-2", 3, 20)
    assert (status.message, status.started, status.updated) == ("collapse", 1.0, 6.0)
    begun = status_of([STARTED, EPOCH, STAGE], held=True)
    assert (begun.stage, begun.epoch) == ("finetune", None)
    assert status_of([STARTED, NOTE, FAILED], held=False).message == "the loss is NaN"


def trial(number, run="prune-search-1", kind="bayesian"):
    trial = {"proposal": {"number": number}}
    return read_event({"event": "trial", "run": run, "kind": kind, "trial": trial, "time": 2.5})


def test_a_run_at_its_trials_tells_how_many():
    stage = StageEvent(stage="prune", time=2.0)
    begun = [STARTED, EPOCH, stage]
    assert status_of(begun, held=True).trial is None
    status = status_of([*begun, trial(0), trial(1), trial(1), trial(0, kind="random"), trial(2)], held=True)
    assert (status.stage, status.label, status.trial, status.epoch) == ("prune", "prune-search-1", 3, None)
    assert status_of([StageEvent(stage="squantizer"), trial(0, run="sq4-layers1")], held=True).stage == "squantizer"
    finalist = EPOCH.model_copy(update={"stage": "prune", "run": "search-1-pruned-1-finalist-1"})
    status = status_of([*begun, trial(0), finalist], held=True)
    assert (status.label, status.epoch, status.trial) == ("search-1-pruned-1-finalist-1", 3, None)


def test_a_run_is_running_while_its_lock_is_held(tmp_path):
    with Run.create(tmp_path / "run", "", {}) as run:
        run.journal.append({"event": "started"})
        assert run_status(Run.open(run.folder)).state == "running"
    assert run_status(run).state == "interrupted"
