"""A run in a real browser while it goes on: the page moves, keeps what is chosen, asks its own server alone."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from dnas.config.file import dump_job, load_job
from dnas.jobs.run import run_job
from results.report.runs import report_json
from results.run.folder import Run
from results.run.progress import SECONDS_BETWEEN, noted
from tests.browsers import Visit, serving_runs
from tests.made_runs import LAYERS, epochs, made_assignment, made_run

pytestmark = pytest.mark.whole

SMALL = (
    *("device=cpu", "threads=1", "model.arguments={width=4}", "data.train_limit=120", "data.test_limit=60"),
    *("pretrain.epochs=2", "search.warmup_epochs=1", "search.epochs=3", "search.budgets=[{size_bytes='20%'}]"),
    *("finetune.epochs=1", "finetune.seeds=1", "controls.uniform=[4]", "controls.ilp=false", "choice.enabled=false"),
    *("prune.enabled=false", "finalise.enabled=false"),
)


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
        told = list[str]()

        def look(event: Mapping[str, Any]) -> None:  # the job waits until the page has told of it
            kind = event["event"]
            if kind == "stage" and "stage" not in told:
                visit.page.locator("#progress", has_text=event["stage"]).wait_for()
            if kind == "progress" and told.count("progress") == 1:  # of which the first is noted by now
                visit.page.locator("#share", has_text="% done").wait_for()
            told.append(kind)

        run.journal.append({"event": "started", "version": 2})
        visit.page.goto(f"{address}/run/small")
        visit.page.locator("#progress", has_text="running").wait_for()
        with noted(run, look) as report:
            run_job(config, run, report)
        assert told.count("progress") > 1
        visit.until("dnas.run && dnas.run.complete")
        assert visit.page.evaluate("dnas.run.points") == report_json([run])["runs"][0]["points"]
        assert visit.page.evaluate("dnas.run.searches[0].theta[0].exact")
        assert visit.page.evaluate("dnas.run.network.edges.length") > 8
        visit.page.locator("#progress", has_text="finished").wait_for()


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


def test_how_far_a_job_is_moves_on_its_page_and_in_the_list(browser: Browser, visit: Visit, tmp_path: Path) -> None:
    folder, later = made_run(tmp_path / "made", finished=False).folder, [0.0]
    listed = Visit(browser)
    with serving_runs(tmp_path) as address, Run.open(folder, write=True) as run:
        page = visit.open(f"{address}/run/made")
        listed.page.goto(address)
        row = listed.page.locator("#runs tbody tr")
        row.filter(has_text="running").wait_for()
        assert page.locator("#share").is_hidden()
        assert "% done" not in row.inner_text()
        with noted(run, lambda event: None, clock=lambda: time.time() + later[0]) as report:
            for share in (0.25, 0.5):
                report({"event": "progress", "fraction": share, "seconds_left": 7200.0})
                told = re.compile(rf"{100 * share:.0f} % done, \d h .* left")
                page.locator("#share", has_text=told).wait_for()
                row.filter(has_text=told).wait_for()
                assert page.locator("#share progress").evaluate("(bar) => bar.value") == share
                later[0] += SECONDS_BETWEEN
        page.locator("#share").wait_for(state="hidden")
        row.filter(has_not_text="% done").wait_for()
        run.journal.append({"event": "measured", "assignment": "search-1", "seed": 0, "val_top1": 0.9})
        row.filter(has_text="search-1 (90.00 %)").wait_for()
    for each in (visit, listed):
        each.complaints[:] = [said for said in each.complaints if "net::ERR" not in said]
    assert listed.complaints == []


def test_a_page_that_nobody_sees_asks_for_nothing(visit: Visit, tmp_path: Path) -> None:
    made_run(tmp_path / "made")
    hide = "(hidden) => { document.away = hidden; document.dispatchEvent(new Event('visibilitychange')); }"
    visit.page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => document.away === true });")
    with serving_runs(tmp_path) as address:
        for place in ("/", "/run/made"):
            page = visit.page
            page.clock.install()
            page.goto(f"{address}{place}")
            page.get_by_text("finished").first.wait_for()
            page.evaluate(hide, True)
            page.clock.run_for(20_000)
            asked = len(visit.asked)
            page.clock.run_for(60_000)
            assert len(visit.asked) == asked
            with page.expect_request(re.compile(r"state\.json|runs\.json")):
                page.evaluate(hide, False)
                page.clock.run_for(20_000)


def test_a_server_that_is_gone_is_told_and_so_is_a_run(visit: Visit, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "made").folder
    with serving_runs(tmp_path) as address:
        page = visit.open(f"{address}/run/made")
        folder.rename(tmp_path.parent / "elsewhere")
        page.locator("#trouble", has_text="there is no such run").wait_for()
        (tmp_path.parent / "elsewhere").rename(folder)
        page.locator("#trouble:empty").wait_for(state="attached")
        (folder / "journal.jsonl").write_text("nothing\nof a journal\n")
        page.locator("#trouble", has_text="corrupt").wait_for()
    page.locator("#trouble", has_text="the server does not answer").wait_for()
    assert visit.chosen == "search-2"
    expected = ("404", "409", "net::ERR")
    visit.complaints[:] = [said for said in visit.complaints if not any(each in said for each in expected)]


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
