"""What axe-core, which knows the rules of WCAG, finds wrong with the pages: nothing, in any light and at any width."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from results.report.page import page as page_of
from results.report.runs import report_json
from results.run.folder import Run
from results.run.progress import noted
from tests.browsers import Visit, serving_runs
from tests.made_runs import made_run

pytestmark = pytest.mark.whole

RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}


def wrong(page: Page) -> list[str]:
    """What axe says of a page: the rule, and the elements that break it."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]} {each['nodes'][0]['failureSummary']}"
        for each in found
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_runs(browser: Browser, tmp_path: Path, scheme: str, width: int) -> None:
    runs = [made_run(tmp_path / "one"), made_run(tmp_path / "two", finished=False)]
    path = tmp_path / "report.html"
    for shown in (runs[:1], runs[1:], runs):
        path.write_text(page_of(report_json(shown)))
        visit = Visit(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = visit.open(path)
        for details in page.locator("details").all():
            details.evaluate("(each) => { each.open = true; }")
        assert wrong(page) == []
        visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_printed_is_black_on_white_whatever_the_screen_shows(
    browser: Browser, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(report_json([made_run(tmp_path / "one")])))
    visit = Visit(browser, color_scheme=scheme)
    page = visit.open(path)
    for _ in range(2):
        page.locator("#theme").click()
        page.emulate_media(media="print")
        colours = {
            ("body", "color"): 0,
            ("body", "backgroundColor"): 255,
            ("#graph text", "fill"): 0,
            ("#front-plot .xtick text", "fill"): 0,
            ("#front-plot .legendtext", "fill"): 0,
            ("#front-plot .scatterlayer .js-line", "stroke"): 0,
        }
        for (selector, which), level in colours.items():
            found = f"getComputedStyle(document.querySelector('{selector}')).{which}"
            visit.until(f"{found} === 'rgb({level}, {level}, {level})'")
        assert wrong(page) == []
        page.emulate_media(media="screen")
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_of_a_server(browser: Browser, tmp_path: Path, scheme: str) -> None:
    folder = made_run(tmp_path / "made", finished=False).folder
    made_run(tmp_path / "other")
    with serving_runs(tmp_path, token="right") as address, Run.open(folder, write=True) as run:
        with noted(run, lambda event: None) as report:
            report({"event": "progress", "fraction": 0.25, "seconds_left": 7200.0})
            visit = Visit(browser, color_scheme=scheme)
            page = visit.open(f"{address}/run/made")
            page.locator("#share", has_text="25 % done").wait_for()
            assert wrong(page) == []
            page.goto(address)
            page.get_by_text("25 % done").wait_for()
            assert wrong(page) == []
            visit.context.close()
