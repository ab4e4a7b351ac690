"""The server reads runs and nothing else: hostile names and addresses, hosts, methods, tokens; changes as they come."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import html
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from starlette.types import ASGIApp

from results.report.log import log_lines
from results.report.runs import report_json
from results.run.folder import Run
from results.run.layout import PROGRESS, list_runs
from results.run.locks import OWNER
from results.run.lost import sound_events
from results.run.stopping import stop
from results.server import shelf as shelves
from results.server.app import OWN, application
from results.server.guard import HEADERS
from results.server.kept import Kept
from results.server.shelf import MOST_REPORTS, Shelf
from search_spaces.errors import InputError
from tests.made_runs import LAYERS, made_network, made_run, made_sensitivities

SECRET = "what lies beside the runs"
WORK = """
import sys, time
from pathlib import Path
from results.run.folder import Run
run = Run.open(Path(sys.argv[1]), write=True)
print("working", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody changes."""
    return made_run(tmp_path_factory.mktemp("made") / "made").folder


def beside_secrets(made: Path, folder: Path) -> Path:
    (folder / "secret.txt").write_text(SECRET)
    shutil.copytree(made, folder / "runs" / "made")
    (folder / "runs" / "made" / "secret.txt").write_text(SECRET)
    return folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return beside_secrets(made, tmp_path)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def guarded(self) -> bool:
        return all(self.headers.get(name.lower()) == value for name, value in HEADERS.items())


class Visitor:
    """Asks a server as a connection would: an address goes in as it was written, nothing of it tidied up first."""

    def __init__(self, shelf: Shelf, **options: Any) -> None:
        self.app: ASGIApp = application(shelf, **options)

    def get(self, address: str, **headers: str) -> Answer:
        return self.ask("GET", address, **headers)

    def ask(self, method: str, address: str, host: str = "localhost", **headers: str) -> Answer:
        path, _, query = address.partition("?")
        told = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {"type": "http", "method": method, "path": unquote(path), "raw_path": path.encode(), "root_path": ""}
        scope |= {"query_string": query.encode(), "http_version": "1.1", "scheme": "http", "server": ("localhost", 80)}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in told.items()]}
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        asyncio.run(self.app(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:]))


@pytest.fixture
def client(runs: Path) -> Visitor:
    return Visitor(Shelf(parent=runs))


@pytest.fixture(scope="module")
def reader(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    """Of runs that nobody changes."""
    return Visitor(Shelf(parent=beside_secrets(made, tmp_path_factory.mktemp("read"))))


def test_the_report_of_a_run_is_what_a_page_shows_of_it(client: Visitor, runs: Path) -> None:
    told = client.get("/run/made/report.json")
    shown = told.json()
    assert {key: value for key, value in shown.items() if key != "version"} == json.loads(
        json.dumps(report_json([Run.open(runs / "made")]))
    )
    tag = told.headers["etag"]
    assert client.get("/run/made/report.json", if_none_match=tag).status == 304
    with Run.open(runs / "made", write=True) as run:
        run.journal.append({"event": "note", "text": "more"})
    assert client.get("/run/made/report.json", if_none_match=tag).status == 200


def test_runs_are_listed_with_where_they_stand(client: Visitor, runs: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "journal.jsonl").write_text("")
    (runs / "nothing").mkdir()
    rows = {row["name"]: row for row in client.get("/runs.json").json()["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {"broken": "damaged", "made": "finished"}
    assert "job.toml" in rows["broken"]["message"]
    answer = client.get("/run/broken/report.json")
    assert (answer.status, "job.toml" in answer.json()["error"]) == (409, True)


def test_pages_hold_no_script_of_their_own_and_ask_for_ours_alone(reader: Visitor) -> None:
    for address in ("/", "/run/made"):
        answer = reader.get(address)
        assert answer.status == 200
        assert answer.guarded
        for part in answer.text.split("<script")[1:]:
            assert part.startswith(' src="/static/')
        assert "<style" not in answer.text
        assert not re.search(r"<[^>]*\son\w+=", answer.text)
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_every_file_that_a_page_asks_for_is_there(reader: Visitor) -> None:
    text = reader.get("/").text + reader.get("/run/made").text
    for name in {part.partition('"')[0] for part in text.split('"/static/')[1:]}:
        answer = reader.get(f"/static/{name}")
        assert (answer.status, answer.guarded) == (200, True)
        assert answer.headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")
    assert set(OWN) > {"runs.js", "live.js"}


@pytest.mark.parametrize(
    "address",
    [
        "/run/..%2f..%2fsecret.txt",
        "/run/%2e%2e%2f%2e%2e%2fsecret.txt/report.json",
        "/run/..",
        "/run/../secret.txt",
        "/run/%2e%2e/report.json",
        "/run/made%2fsecret.txt",
        "/run/made/secret.txt",
        "/run/made/%2e%2e/%2e%2e/secret.txt",
        "/run/made%00/report.json",
        "/run/%00",
        "/run//report.json",
        "/run/made/events/../../../secret.txt",
        "/run/" + "a" * 9000,
        "/run/made%0d%0aSet-Cookie:%20a=b/report.json",
        "/run/<script>alert(1)<%2Fscript>",
        "/run/%F0%9F%98%80",
        "/run/%FF%FE/report.json",
        "/static/../secret.txt",
        "/static/..%2f..%2fpage.py",
        "/static/%2e%2e/app.py",
        "/static/page.html",
        "/static//etc/passwd",
        "/static/..\\..\\secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/run/made/report.json/",
        "/.lock",
        "/run/.",
    ],
)
def test_no_address_reaches_a_file(reader: Visitor, address: str) -> None:
    answer = reader.get(address)
    assert answer.status in (307, 404)
    assert answer.guarded
    assert SECRET not in answer.text
    assert "root:" not in answer.text
    assert "set-cookie" not in answer.headers


KEPT = ("journal.jsonl", "job.toml", "front.json", "environment.json", "network.json", "sensitivity-hessian.json")


@pytest.mark.parametrize("name", [*KEPT, "assignments/search-1.json", "assignments", PROGRESS])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_is_read_through_a_link_and_no_pipe_is_waited_for(
    client: Visitor, runs: Path, name: str, kind: str
) -> None:
    path, elsewhere = runs / "made" / name, runs.parent / "elsewhere"
    told = {"progress": SECRET, "fraction": 0.25, "seconds_left": None, "time": 0, "text": SECRET, "python": SECRET}
    if path.exists():
        path.rename(elsewhere)
        if elsewhere.is_file() and name.endswith("json"):
            elsewhere.write_text(json.dumps({**json.loads(elsewhere.read_text()), **told}))
    else:
        elsewhere.write_text(json.dumps(told))
    path.symlink_to(elsewhere) if kind == "link" else os.mkfifo(path)
    for address in ("/runs.json", "/run/made/state.json", "/run/made/report.json"):
        answer = client.get(address)
        assert answer.status in (200, 404, 409)
        assert SECRET not in answer.text
        assert "25 %" not in answer.text


@pytest.mark.parametrize("name", ["<script>alert(1)<|script>", '"><img src=x onerror=alert(1)>', "a b#c?d", "%2e%2e"])
def test_a_run_of_any_name_is_shown_as_text(made: Path, tmp_path: Path, name: str) -> None:
    for folder in (name, "usual"):
        shutil.copytree(made, tmp_path / folder)
    client = Visitor(Shelf(parent=tmp_path))
    assert [row["name"] for row in client.get("/runs.json").json()["runs"]] == sorted([name, "usual"])
    shown, usual = client.get(f"/run/{quote(name, safe='')}"), client.get("/run/usual")
    assert shown.status == 200
    assert shown.text.replace(html.escape(name), "usual") == usual.text


def test_a_folder_that_is_named_by_its_parent_has_its_own_name(made: Path) -> None:
    assert Shelf([made / ".." / "made"]).runs().keys() == {"made"}


def test_a_run_that_is_there_twice_is_one(runs: Path) -> None:
    folder = runs / "made"
    (runs / "latest").symlink_to("made")
    shelf = Shelf([folder, folder / "assignments" / ".."], runs)
    assert shelf.runs() == {"made": folder}


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\xff<script>", "right\u202etfel".encode()])
def test_a_run_whose_name_is_no_text_is_there(made: Path, tmp_path: Path, name: bytes) -> None:
    shutil.copytree(made, os.fsdecode(bytes(tmp_path) + b"/" + name))
    client = Visitor(Shelf(parent=tmp_path))
    [row] = client.get("/runs.json").json()["runs"]
    assert "\ufffd" in row["name"]
    address = f"/run/{quote(row['name'], safe='')}"
    assert client.get(address).status == 200
    assert client.get(f"{address}/report.json").json()["runs"][0]["name"] == row["name"]


def test_runs_of_one_name_are_both_there(made: Path, tmp_path: Path) -> None:
    folders = [shutil.copytree(made, tmp_path / parent / "run") for parent in "ab"]
    assert Shelf(folders).runs() == {"run": folders[0], "run (2)": folders[1]}
    assert Visitor(Shelf(folders)).get("/run/run%20(2)/report.json").json()["runs"][0]["name"] == "run (2)"


FOREIGN = (
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example:80",
    "",
    "[evil.example]",
    "localhost@evil.example",
)


@pytest.mark.parametrize("host", FOREIGN)
def test_a_host_that_is_not_ours_is_not_answered(reader: Visitor, host: str) -> None:
    answer = reader.get("/runs.json", host=host)
    assert (answer.status, answer.guarded) == (400, True)
    assert "made" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8600", "127.0.0.1", "10.1.2.3:8600", "[::1]:1", "[::1]"])
def test_a_host_of_ours_is_answered(reader: Visitor, host: str) -> None:
    assert reader.get("/runs.json", host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(reader: Visitor, method: str) -> None:
    for address in ("/", "/runs.json", "/run/made", "/run/made/report.json", "/static/core.js"):
        assert reader.ask(method, address).status == 405


def test_reading_changes_nothing(client: Visitor, runs: Path) -> None:
    def digests() -> dict[str, str]:
        files = [path for path in runs.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    for address in ("/", "/runs.json", "/run/made", "/run/made/report.json", "/static/plotly.js"):
        assert client.get(address).status == 200
    assert digests() == before


def test_a_reader_hears_of_every_change_and_of_the_end(client: Visitor, runs: Path) -> None:
    def asked(tag: str = "") -> Answer:
        return client.get("/run/made/state.json", if_none_match=tag)

    first = asked()
    assert asked(first.headers["etag"]).status == 304
    with Run.open(runs / "made", write=True) as run:
        run.journal.append({"event": "note", "text": "more"})
        second = asked(first.headers["etag"])
        assert (second.json()["state"], second.json()["place"]) == ("finished", "prune search-1 trial 4")
    assert second.json()["version"] != first.json()["version"]
    assert second.json()["log"][-1].endswith("more")
    (runs / "made").rename(runs.parent / "elsewhere")
    assert asked().status == 404


CHANGES: dict[str, Callable[[Run], object]] = {
    "a line of the journal": lambda run: run.journal.append({"event": "note", "text": "more"}),
    "an assignment": lambda run: run.save_assignment(run.assignment("search-1")),
    "a front": lambda run: run.save_front(run.load_front()),
    "a network": lambda run: run.save_network(made_network(LAYERS)),
    "sensitivities": lambda run: run.save_sensitivities(made_sensitivities(LAYERS)),
    "the end of a process": Run.close,
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_a_page_shows_it_is_read_again_when_that_has_changed(runs: Path, what: str) -> None:
    shelf = Shelf(parent=runs)
    with Run.open(runs / "made", write=True) as run:
        before, same = (shelf.state("made")["version"] for _ in range(2))
        assert before == same
        CHANGES[what](run)
        assert shelf.state("made")["version"] != before


def test_how_far_a_job_is_stands_beside_its_place(client: Visitor, runs: Path) -> None:
    (runs / "made" / PROGRESS).write_text(json.dumps({"fraction": 0.25, "seconds_left": 3.0, "time": 4e9}))

    def told() -> list[Any]:
        return [*client.get("/runs.json").json()["runs"], client.get("/run/made/state.json").json()]

    assert [row["progress"] for row in told()] == [None, None], "nobody works on it: an old note tells nothing"
    with Run.open(runs / "made", write=True) as run:
        run.journal.append({"event": "resumed"})
        assert [row["progress"] for row in told()] == 2 * [{"fraction": 0.25, "text": "25 % done, 3 s left"}]
        assert {row["best"] for row in told()} == {"search-2 (7,500 B, 93.80 %)"}


def test_what_is_sent_is_packed_where_the_reader_unpacks_it(reader: Visitor) -> None:
    for address in ("/static/plotly.js", "/run/made/report.json", "/runs.json"):
        plain, packed = reader.get(address), reader.get(address, accept_encoding="gzip, br")
        assert gzip.decompress(packed.body) == plain.body
        assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
        assert packed.headers["vary"] == "Accept-Encoding"
        assert reader.get(address, if_none_match=plain.headers["etag"]).status == 304


def test_a_run_is_read_again_only_when_it_has_changed_and_few_reports_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, read = Shelf(parent=tmp_path), list[str]()
    monkeypatch.setattr(shelves, "report_json", lambda runs: read.append(runs[0].name) or report_json(runs))
    for number in range(MOST_REPORTS + 1):
        with Run.create(tmp_path / f"run{number}", "", {}) as run:
            run.journal.append({"event": "started"})
        shelf.report(f"run{number}")
        shelf.report(f"run{number}")
    assert read == [f"run{number}" for number in range(MOST_REPORTS + 1)]
    shelf.report("run1")
    shelf.report("run0")
    assert read[MOST_REPORTS + 1 :] == ["run0"]


def test_a_run_that_takes_long_to_read_holds_up_no_other() -> None:
    kept, begun, go_on = Kept[str](), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(60)
        return "slow"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.get, "large", "1", slow)
        assert begun.wait(60)
        again = pool.submit(kept.get, "large", "1", lambda: "read twice")
        assert kept.get("small", "1", lambda: "quick") == "quick"
        go_on.set()
        assert (first.result(), again.result()) == ("slow", "slow")


def test_where_all_runs_stand_is_read_once_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        with Run.create(tmp_path / f"run{number}", "", {}) as run:
            run.journal.append({"event": "started"})
    shelf, listed, read = Shelf(parent=tmp_path), list[Path](), list[Path]()
    monkeypatch.setattr(shelves, "list_runs", lambda parent: listed.append(parent) or list_runs(parent))
    monkeypatch.setattr(shelves, "sound_events", lambda run: read.append(run.folder) or sound_events(run))
    assert len(shelf.rows()) == len(shelf.rows()) == 60
    assert (len(listed), len(read)) == (2, 60)


def test_a_log_has_a_line_for_every_kind_of_event(runs: Path) -> None:
    lines = log_lines(Run.open(runs / "made").journal.events())
    assert lines[0][8:] == "  started"
    assert any(line.endswith("search search-1: epoch 2 of 3, loss 0.5, 70.00 %") for line in lines)
    assert any(line.endswith("prune-search-1, random trial 4: loss 0.25") for line in lines)
    assert len(log_lines(Run.open(runs / "made").journal.events(), most=3)) == 3


@pytest.fixture
def worker(runs: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORK, str(runs / "made")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout
        assert process.stdout.readline() == "working\n"
        yield process
        process.kill()


def test_only_the_token_stops_a_job(runs: Path, worker: subprocess.Popen[str]) -> None:
    assert Visitor(Shelf(parent=runs)).ask("POST", "/run/made/stop").status == 403
    client = Visitor(Shelf(parent=runs), token="right")
    for given in ({}, *({"authorization": f"Bearer {word}"} for word in ("wrong", "", "ri", "right ", "\u00e9"))):
        answer = client.ask("POST", "/run/made/stop", **given)
        assert (answer.status, answer.json()) == (403, {"error": "wrong token"})
    assert client.get("/run/made/stop").status == 405
    assert worker.poll() is None
    right = {"authorization": "Bearer right"}
    assert client.ask("POST", "/run/none/stop", **right).status == 404
    assert client.ask("POST", "/run/made/stop", **right).json() == {"stopped": f"pid {worker.pid} on {platform.node()}"}
    assert worker.wait(20) != 0
    answer = client.ask("POST", "/run/made/stop", **right)
    assert (answer.status, "nothing to stop" in answer.json()["error"]) == (409, True)


def test_a_file_cannot_name_another_process_to_end(runs: Path, worker: subprocess.Popen[str]) -> None:
    names = {
        f"{os.getpid()}\n{platform.node()}\n": "does not hold its lock",
        f"1\n{platform.node()}\n": "does not hold its lock",
        "12\nelsewhere\n": "end it there",
        "": "does not say which process",
        f"-1\n{platform.node()}\n": "does not say which process",
        f"999999999999\n{platform.node()}\n": "does not hold its lock",
    }
    for owner, sentence in names.items():
        (runs / "made" / OWNER).write_text(owner)
        with pytest.raises(InputError, match=sentence):
            stop(Run.open(runs / "made"))
    assert worker.poll() is None
