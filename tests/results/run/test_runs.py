import json
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from results.events import Decoded, Finished
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.run.environment import environment
from results.run.folder import Run
from results.run.layout import list_runs
from results.run.locks import OWNER, FolderLock, Owner, lock_holder
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError, JobError

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from pathlib import Path
from results.run.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def assignment(id):
    return BitAssignment(id, ModelReference("zoo:resnet20", (3, 32, 32)), {"conv1": LayerBits(4, 8)})


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "runs" / "digits", "seed = 1\n", {"torch": "2"}) as run:
        yield run


@pytest.fixture
def holder(run):
    """Another process that holds the lock of the run, waiting on its standard input."""
    run.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_create_and_open(run):
    assert run.writable
    assert run.name == "digits"
    run.journal.append({"event": "started"})
    reader = Run.open(run.folder)
    assert not reader.writable
    assert reader.job_toml() == "seed = 1\n"
    assert reader.environment() == {"torch": "2"}
    assert [record["event"] for record in reader.journal.records()] == ["started"]
    assert list_runs(run.folder.parent) == [run.folder]
    assert list_runs(run.folder / "nowhere") == []


def test_a_folder_that_somebody_keeps_to_himself_hides_no_other(run, monkeypatch):
    (run.folder.parent / "private").mkdir()
    is_file = Path.is_file

    def asked(path):
        if path.parent.name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", asked)
    assert list_runs(run.folder.parent) == [run.folder]


def test_what_is_opened_for_reading_is_never_written(run):
    reader = Run.open(run.folder)
    for call in (
        lambda: reader.journal.append({"event": "note"}),
        lambda: reader.save_assignment(assignment("a")),
        lambda: reader.save_checkpoint("a", {}, {}),
        lambda: reader.delete_checkpoint("a"),
        lambda: reader.save_front(ParetoFront(())),
    ):
        with pytest.raises(RuntimeError, match="opened for reading"):
            call()
    run.close()
    with pytest.raises(RuntimeError, match="opened for reading"):
        run.journal.append({"event": "note"})


def test_an_existing_run_is_not_overwritten(run):
    run.close()
    with pytest.raises(InputError, match=r"already holds a run; go on with it \(dnas resume .*digits\) or .* --run"):
        Run.create(run.folder, "", {})
    assert run.job_toml() == "seed = 1\n"


def test_a_foreign_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not empty and is not a run; choose another folder with --run"):
        Run.create(tmp_path, "", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis\.tex is a file"):
        Run.create(tmp_path / "thesis.tex", "", {})
    with pytest.raises(InputError, match=r"is not a run folder: it has no journal\.jsonl"):
        Run.open(tmp_path)


def test_a_creation_that_was_killed_can_be_repeated(tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    for name in (".lock", "job.toml", ".environment.json.77.tmp"):
        (tmp_path / "a" / name).write_text("")
    with Run.create(tmp_path / "a", "seed = 2\n", {}) as run:
        assert run.job_toml() == "seed = 2\n"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, JobError), match="file"):
        Run.create(tmp_path / "file" / "run", "", {})


def test_the_nearest_run_is_suggested(run):
    with pytest.raises(InputError, match=r"there is no run at .*digit; did you mean 'digits'\?"):
        Run.open(run.folder.parent / "digit")
    with pytest.raises(InputError, match="there is no run at"):
        Run.open(Path("/nowhere/at/all"))


def test_a_second_writer_is_refused_by_process_id(run, holder):
    with pytest.raises(
        InputError,
        match=rf"another process \(pid {holder.pid} on {re.escape(platform.node())}\) is working on this run "
        rf"\({run.folder}\); wait for it, or end it with: dnas stop {run.folder}$",
    ):
        Run.open(run.folder, write=True)
    with pytest.raises(InputError, match="already holds a run"):
        Run.create(run.folder, "", {})
    assert Run.open(run.folder).writer == Owner(holder.pid, platform.node())


def test_a_killed_writer_frees_the_run(run, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Run.open(run.folder, write=True) as again:
        assert again.writable
        assert again.writer == Owner.here()
    assert again.writer is None


def test_the_same_process_is_refused_too(run):
    with pytest.raises(InputError, match="this process already works on this run"):
        Run.open(run.folder, write=True)


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    # The parent is killed; its forked child lives on, as a data-loader worker may.
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom results.run.locks import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]))\n"
        "os.fork() or os.write(1, b'forked\\n')\nos.read(0, 1)\n"
    )
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout.readline() == "forked\n"
        assert lock_holder(path) == Owner(process.pid, platform.node())
        process.kill()
        process.wait()
        FolderLock(path).release()
        process.stdin.close()


def test_an_unlocked_folder_has_no_holder(tmp_path):
    assert lock_holder(tmp_path / ".lock") is None
    assert list(tmp_path.iterdir()) == []  # asking leaves nothing behind
    (tmp_path / ".lock").write_text("4711\n")  # of an older version, or left by a kill
    (tmp_path / OWNER).write_text(f"4711\n{platform.node()}\n")
    assert lock_holder(tmp_path / ".lock") is None
    lock = FolderLock(tmp_path / ".lock")
    for text in ("", "not a number", "\udcff".encode("utf-8", "surrogateescape")):
        (tmp_path / OWNER).write_bytes(text if isinstance(text, bytes) else text.encode())
        assert lock_holder(tmp_path / ".lock") == Owner()
        with pytest.raises(InputError, match=r"another process \(pid unknown\) is working on this run"):
            FolderLock(tmp_path / ".lock")
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_another_process_of_the_same_number_is_not_the_owner():
    """Where nothing can be locked, in a folder that is only read, the number is all there is to go by."""
    here = Owner.here()
    assert here.may_live()
    assert Owner(here.pid, here.host).may_live()  # of an earlier version
    assert not Owner(here.pid, here.host, str(int(here.began) - 1)).may_live()


@pytest.mark.parametrize("its_lock_is_left", [False, True])
def test_a_run_of_another_host_is_taken_over_when_asked(tmp_path, its_lock_is_left):
    path = tmp_path / ".lock"
    left = FileLock(path, thread_local=False)  # as a file server may keep it for a host that is gone
    if its_lock_is_left:
        left.acquire()
    (tmp_path / OWNER).write_text("77\nelsewhere\n")
    with pytest.raises(InputError, match=r"another process \(pid 77 on elsewhere\) is or was .* add --take-over"):
        FolderLock(path)
    assert Owner.read(tmp_path / OWNER) == Owner(77, "elsewhere")
    lock = FolderLock(path, take_over=True)
    assert Owner.read(tmp_path / OWNER) == lock_holder(path) == Owner.here()
    for take_over in (False, True):
        with pytest.raises(InputError, match="this process already works on this run"):
            FolderLock(path, take_over=take_over)
    lock.release()
    assert lock_holder(path) is None
    left.release()


def test_a_run_that_another_process_takes_over_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    def lose(self, **options):
        (tmp_path / OWNER).write_text(f"77\n{platform.node()}\n")
        raise Timeout(str(self.lock_file))

    path = tmp_path / ".lock"
    path.write_text("")
    (tmp_path / OWNER).write_text("76\nelsewhere\n")
    monkeypatch.setattr(FileLock, "acquire", lose)
    with pytest.raises(InputError, match=r"another process \(pid 77 on .*\) is working on this run"):
        FolderLock(path, take_over=True)
    assert path.exists()


def test_a_process_that_lives_here_is_not_taken_over(run, holder):
    with pytest.raises(InputError, match=rf"another process \(pid {holder.pid} on .*\) is working on this run"):
        Run.open(run.folder, write=True, take_over=True)


def test_a_reader_that_may_not_write_is_told_too(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / ".lock"
    lock = FolderLock(path)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert lock_holder(path) == Owner.here()
    for text, held in (("1\n", True), (f"{2**22 + 1}\n", False), (f"{10**30}\n", True), ("?\n", False)):
        (tmp_path / OWNER).write_text(text + platform.node())
        assert (lock_holder(path) is not None) == held, text
    (tmp_path / OWNER).write_text("77\nelsewhere\n")
    assert str(lock_holder(path)) == "pid 77 on elsewhere"
    with pytest.raises(JobError, match=r"cannot lock .*\.lock: Permission denied; put the run, or a copy of it, where"):
        FolderLock(path)
    lock.release()
    assert not lock.held


def test_leftovers_of_a_kill_are_removed_by_the_next_writer(run):
    left = run.folder / "checkpoints" / ".search.safetensors.77.tmp"
    left.write_text("half")
    folder = run.folder / ".submitit-77.tmp"
    folder.mkdir()
    (folder / "1000_submitted.pkl").write_text("a task that was handed in")
    run.close()
    Run.open(run.folder)
    assert left.exists()
    assert folder.exists()
    Run.open(run.folder, write=True).close()
    assert not left.exists()
    assert not folder.exists()


def test_assignments(run):
    for name in ("search-1", "search-2", "uniform-4"):
        run.save_assignment(assignment(name))
    assert list(run.assignments()) == ["search-1", "search-2", "uniform-4"]
    assert run.assignment("search-1") == assignment("search-1")
    with pytest.raises(InputError, match=r"no assignment 'serch-1'; it has search-1, .*; did you mean 'search-1'\?"):
        run.assignment("serch-1")


def test_the_float_network_is_told_from_an_assignment(run):
    with pytest.raises(InputError, match=r"'float' is the float network of .* is no assignment; it becomes one"):
        run.assignment(run.complete_id("float"))


def test_an_emptied_job_file_is_told_with_the_step_that_helps(run):
    for text in ("", "\n \n"):
        (run.folder / "job.toml").write_text(text)
        with pytest.raises(
            InputError, match=r"job\.toml is empty, and it said what the run is: restore it from a copy"
        ):
            run.job_file()


@pytest.mark.parametrize("beginning", ["", "search", "search-1", "u", "uniform-4.json"])
def test_only_a_whole_id_names_an_assignment(run, beginning):
    for name in ("search-10", "uniform-4"):
        run.save_assignment(assignment(name))
    with pytest.raises(InputError, match=f"no assignment '{beginning}'"):
        run.assignment(beginning)


def test_a_beginning_that_only_one_id_has_is_completed(run):
    for name in ("search-1", "search-10", "search-2", "uniform-4"):
        run.save_assignment(assignment(name))
    assert [run.complete_id(name) for name in ("u", "search-1", "search-10", "")] == [
        "uniform-4",
        "search-1",
        "search-10",
        "",
    ]
    assert run.complete_id("nothing") == "nothing"  # for `assignment` to refuse, with the nearest one
    with pytest.raises(InputError, match="'search-' could be any of search-1, search-10, search-2"):
        run.complete_id("search-")


@pytest.mark.parametrize("others", [["search-10"], ["search-10", "search-1-pruned-1"], []])
def test_an_assignment_whose_file_is_gone_is_never_another_that_begins_so(run, others):
    for name in ("search-1", *others):
        run.journal.append(Decoded(assignment=name, kind="search", run="search-1").to_json())
        run.save_assignment(assignment(name))
    (run.folder / "assignments" / "search-1.json").unlink()
    assert run.complete_id("search-1") == "search-1"
    with pytest.raises(InputError, match=r"search-1\.json is gone; make it again with: dnas resume"):
        run.assignment(run.complete_id("search-1"))


@pytest.mark.parametrize("id", ["../escape", "a/b", "", ".hidden", "a" * 200, "a\n"])
def test_an_id_never_leaves_the_folder(run, id):
    with pytest.raises(InputError, match="cannot be an assignment id"):
        run.save_assignment(assignment(id))
    with pytest.raises(InputError, match="cannot be a checkpoint name"):
        run.save_checkpoint(id, {}, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ("{}", "not an assignment file"),
        ('{"schema": ', "it is not JSON"),
        ("[]", "not an assignment file"),
        (json.dumps({**assignment("a").to_json(), "layers": 3}), "is damaged"),
        (json.dumps({**assignment("a").to_json(), "cost": {"size_bytes": "big"}}), "is damaged"),
        (json.dumps(assignment("b").to_json()), "it holds the assignment 'b'"),
    ],
)
def test_a_damaged_assignment_is_told_by_path_and_breaks_no_other(run, text, why):
    path = run.save_assignment(assignment("a"))
    run.save_assignment(assignment("sound"))
    path.write_text(text)
    with pytest.raises(InputError, match=rf"assignments/a\.json.*{why}.*; make it again with: dnas resume"):
        run.assignment("a")
    assert run.assignments() == {"sound": assignment("sound")}
    assert why in run.damaged_assignments()["a"]


def test_front(run):
    with pytest.raises(InputError, match="has no front yet; go on with: dnas resume"):
        run.load_front()
    run.journal.append(Finished().to_json())
    with pytest.raises(InputError, match=r"front\.json is gone; write it again with: dnas resume"):
        run.load_front()
    front = ParetoFront.from_points([FrontPoint("a", "search", 10, 20, 30, Estimate(0.5))])
    run.save_front(front)
    assert run.load_front() == front
    assert (run.folder / "front.csv").read_text().splitlines()[0].startswith("assignment,kind")
    (run.folder / "front.json").write_text('{"schema": "dnas.front/9"}')
    with pytest.raises(InputError, match=r"front\.json: not a front file: its schema is 'dnas\.front/9'"):
        run.load_front()


def test_environment_names_what_a_result_depends_on():
    found = environment()
    assert {"python", "torch", "numpy", "dnas", "platform", "cpu_count", "thread_count", "cuda_device"} <= set(found)
    assert found["thread_count"] >= 1


def test_a_damaged_environment_is_told(run):
    (run.folder / "environment.json").write_text("[]")
    with pytest.raises(InputError, match=r"environment\.json is damaged"):
        run.environment()
