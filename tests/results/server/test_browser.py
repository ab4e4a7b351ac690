"""A run in a real browser while it goes on: the page moves, keeps what is chosen, asks its own server alone."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from dnas.commands import serving
from dnas.config.file import dump_job, load_job
from dnas.jobs.run import run_job
from results.report.runs import report_json
from results.run.folder import Run
from results.server.app import application
from results.server.running import Server
from results.server.shelf import Shelf
from tests.browsers import Visit, open_browser
from tests.made_runs import LAYERS, epochs, made_assignment, made_run

pytestmark = pytest.mark.slow

SMALL = (
    *("device=cpu", "threads=1", "model.arguments={width=4}", "data.train_limit=120", "data.test_limit=60"),
    *("pretrain.epochs=2", "search.warmup_epochs=1", "search.epochs=3", "search.budgets=[{size_bytes='20%'}]"),
    *("finetune.epochs=1", "finetune.seeds=1", "controls.uniform=[4]", "controls.ilp=false", "choice.enabled=false"),
    *("prune.enabled=false", "finalise.enabled=false"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@contextmanager
def serving_runs(runs: Path, token: str | None = None) -> Iterator[str]:
    """The address of a server in a thread."""
    app = application(Shelf(parent=runs), hosts=serving.LOOPBACK, token=token, interval=0.1)
    server = Server(app)
    with serving._listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    found = Visit(browser)
    yield found
    assert found.complaints == []
    found.context.close()


def test_the_page_moves_and_keeps_what_is_chosen(visit: Visit, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "made", finished=False).folder
    with serving_runs(tmp_path) as address, Run.open(folder, write=True) as run:
        page = visit.open(f"{address}/run/made")
        assert "running" in visit.text("#progress")
        page.locator("#choice").select_option("uniform-2")
        assert page.evaluate("dnas.run.points.length") == 1
        for record in epochs("search-2", LAYERS[1:-1], 2):
            run.journal.append(record)
        page.locator("#log", has_text="search search-2: epoch 2 of 2").wait_for()
        page.locator("#which option", has_text="search-2").wait_for(state="attached")
        more = made_assignment("uniform-4", [4] * 4, kind="uniform")
        run.save_assignment(more.with_metrics(val_top1={"mean": 0.91, "std": 0.0, "n": 1}))
        run.journal.append({"event": "measured", "assignment": "uniform-4", "seed": 0, "val_top1": 0.91})
        visit.until("dnas.run.points.length === 2")
        assert visit.chosen == "uniform-2"
        assert page.locator("#stop").is_hidden()
        run.journal.append({"event": "finished"})
    assert all(asked.startswith((address, "blob:")) for asked in visit.asked)
    visit.complaints[:] = [said for said in visit.complaints if "net::ERR" not in said]  # the server is gone


def test_a_real_job_is_seen_from_its_first_epoch_to_its_front(visit: Visit, tmp_path: Path) -> None:
    config = load_job("digits", SMALL)
    with serving_runs(tmp_path) as address, Run.create(tmp_path / "small", dump_job(config), {}) as run:
        states: list[str] = []

        def look(event: object) -> None:
            if len(states) < 3 and run.journal.records():
                states.append(visit.text("#progress") or "-")

        run.journal.append({"event": "started", "version": 2})
        visit.page.goto(f"{address}/run/small")
        visit.page.locator("#progress", has_text="running").wait_for()
        run_job(config, run, look)
        visit.until("dnas.run && dnas.run.complete")
        shown = visit.page.evaluate("dnas.run.points")
        assert shown == report_json([run])["runs"][0]["points"]
        assert visit.page.evaluate("dnas.run.searches[0].theta[0].exact")
        assert visit.page.evaluate("dnas.run.network.edges.length") > 8
        assert any("running" in state for state in states)


def test_the_list_leads_to_runs_of_any_name(visit: Visit, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> #?%2e"
    made_run(tmp_path / name)
    with serving_runs(tmp_path) as address:
        page = visit.page
        page.goto(address)
        link = page.get_by_role("link", name=name)
        link.wait_for()
        assert page.locator("img").count() == 0
        link.click()
        page.locator("html[data-chosen]").wait_for(state="attached")
        assert page.locator("h1").inner_text() == name
    assert all(asked.startswith(address) for asked in visit.asked)
    visit.complaints[:] = [said for said in visit.complaints if "net::ERR" not in said]


def test_a_token_stops_the_job_from_the_page(visit: Visit, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "made", finished=False).folder
    code = "import sys, time; from results.run.folder import Run; r = Run.open(sys.argv[1], write=True); time.sleep(60)"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=root) as worker:
        with serving_runs(tmp_path, token="right") as address:
            page = visit.open(f"{address}/run/made")
            page.locator("#stop").wait_for()
            for token, said in (("wrong", "wrong token"), ("right", "asked to stop")):
                page.locator("#token").fill(token)
                page.locator("#stop button").click()
                page.locator("#stopped", has_text=re.compile(said)).wait_for()
            assert worker.wait(20) != 0
            page.locator("#progress", has_text="interrupted").wait_for()
        visit.complaints[:] = [said for said in visit.complaints if "403" not in said and "net::ERR" not in said]
