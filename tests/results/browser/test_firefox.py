"""The same pages in another browser: they draw, a click chooses everywhere, files are whole, a live page moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from results.report.page import page as page_of
from results.report.runs import report_json
from results.run.folder import Run
from results.run.progress import noted
from results.tables.export import export_assignment
from tests.browsers import Visit, serving_runs
from tests.made_runs import LAYERS, epochs, made_run

pytestmark = pytest.mark.slow


def test_a_file_is_read_and_a_click_chooses_everywhere(firefox: Browser, tmp_path: Path) -> None:
    run, path = made_run(tmp_path / "made"), tmp_path / "report.html"
    path.write_text(page_of(report_json([run])))
    visit = Visit(firefox)
    page = visit.open(path)
    page.mouse.move(*visit.place_of("search-1"))
    page.locator("#card", has_text="90.00 ±1.00 %").wait_for()
    page.mouse.click(*visit.place_of("search-1"))
    assert visit.chosen == "search-1"
    assert "weights 2 bits, inputs 8 bits, 500 B" in visit.text("#graph")
    assert page.locator("#choice").input_value() == "search-1"
    with page.expect_download() as waited:
        page.locator("#save-json").click()
    export_assignment(run.assignment("search-1"), "json", tmp_path / "exported")
    assert Path(waited.value.path()).read_bytes() == (tmp_path / "exported").read_bytes()
    assert [url for url in visit.asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert visit.complaints == []
    visit.context.close()


def test_a_live_page_moves(firefox: Browser, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "made", finished=False).folder
    with serving_runs(tmp_path) as address, Run.open(folder, write=True) as run:
        visit = Visit(firefox)
        page = visit.open(f"{address}/run/made")
        with noted(run, lambda event: None) as report:
            report({"event": "progress", "fraction": 0.25, "seconds_left": 7200.0})
            page.locator("#share", has_text="25 % done").wait_for()
            for record in epochs("search-2", LAYERS[1:-1], 2):
                run.journal.append(record)
            page.locator("#log", has_text="search search-2: epoch 2 of 2").wait_for()
            page.locator("#which option", has_text="search-2").wait_for(state="attached")
        assert visit.complaints == []
        visit.context.close()
