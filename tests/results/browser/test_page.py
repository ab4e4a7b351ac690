"""The page in a real browser: it draws, a click chooses everywhere, files are those of `dnas export`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from typer.testing import CliRunner

from dnas.commands.cli import app
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.report.page import page as page_of
from results.report.runs import SCHEMA, kinds_json, report_json, run_json
from results.run.folder import Run
from results.tables.export import export_assignment
from search_spaces.metrics import ACCURACY, Metric
from tests.browsers import Visit
from tests.made_runs import made_material, made_run

pytestmark = pytest.mark.whole

HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(2)>.weight", "../../etc/passwd", "</script>&lt;b&gt;")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("made") / "made")


@pytest.fixture(scope="module")
def file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page") / "report.html", run)


def written(path: Path, *runs: Run) -> Path:
    path.write_text(page_of(report_json(runs)))
    return path


def test_the_page_asks_for_nothing_and_says_first_what_to_take(visit: Visit, file: Path) -> None:
    visit.open(file)
    assert visit.asked == [file.as_uri()]
    assert visit.text("#take strong").startswith("Take 'search-2'")
    assert visit.chosen == "search-2"
    assert visit.page.locator("#front-plot .scatterlayer .trace").count() > 3
    hidden = visit.page.locator("main > section[hidden]")
    assert [hidden.nth(at).get_attribute("id") for at in range(hidden.count())] == ["live"]


def test_the_pointer_tells_all_of_a_point(visit: Visit, file: Path) -> None:
    visit.open(file)
    visit.page.mouse.move(*visit.place_of("search-1"))
    card = visit.page.locator("#card")
    card.wait_for(state="visible")
    said = card.inner_text()
    for part in (
        "search-1",
        "90.00 ±1.00 %",
        "2 seeds",
        "89.00 ±2.00 %",
        "6,500 B",
        "144 kBitOps",
        "5.25 ms",
        "size_bytes 20%",
    ):
        assert part in said


def test_a_click_chooses_in_every_view(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    page.locator("#front-rows summary").click()
    page.mouse.click(*visit.place_of("search-1"))
    assert visit.chosen == "search-1"
    assert page.locator("#choice").input_value() == "search-1"
    assert "made for the budget size_bytes 20%" in visit.text("#about")
    assert "6,500 B" in visit.text("#figures")
    rows = page.locator("#layers tbody tr")
    assert [[part.strip() for part in rows.nth(at).inner_text().split("\t")[:3]] for at in range(4)] == [
        ["stem", "4 bits", "8 bits"],
        ["block.first", "2 bits", "8 bits"],
        ["block.second", "4 bits", "8 bits"],
        ["head", "8 bits", "8 bits"],
    ]
    assert "weights 2 bits, inputs 8 bits, 500 B" in visit.text("#graph")
    assert page.locator("#points tr[aria-current=true]").inner_text().startswith("search-1")
    assert "search-1" in page.locator("#profile-rows tr[aria-current=true]").inner_text()
    assert visit.text("#ring") == "search-1"
    assert page.evaluate("location.hash") == "#made/search-1"
    assert float(page.evaluate("document.documentElement.dataset.chosenMs")) < 1000


def test_everything_can_be_done_by_keys(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    front = page.evaluate("dnas.run.fronts.size_bytes.front")
    page.locator("#front-plot").focus()
    page.keyboard.press("Home")
    chosen = [visit.chosen]
    for _ in front[1:]:
        page.keyboard.press("ArrowRight")
        chosen.append(visit.chosen)
    assert chosen == front
    page.keyboard.press("ArrowRight")
    assert visit.chosen == front[-1]
    page.locator("#previous").press("Enter")
    assert visit.chosen == front[-2]
    page.locator("#graph g[tabindex]").nth(1).press("Enter")
    assert visit.text("#node").startswith("stem: Conv2d, 8×8×8 → 8×8×8, 1,000 weights")
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, button, pre[tabindex]")].filter((each) =>
          !(each.labels && each.labels.length) && !each.innerText && !each.getAttribute("aria-label")
        ).map((each) => each.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("format", ["json", "csv"])
def test_downloads_are_what_export_writes(visit: Visit, run: Run, file: Path, format: str, tmp_path: Path) -> None:
    page = visit.open(file)
    for name in ("uniform-8", "search-1", "pool-1-theta"):
        page.locator("#choice").select_option(name)
        with page.expect_download() as waited:
            page.locator(f"#save-{format}").click()
        export_assignment(run.assignment(name), format, tmp_path / "exported")
        assert waited.value.suggested_filename == f"{name}.{format}"
        assert Path(waited.value.path()).read_bytes() == (tmp_path / "exported").read_bytes()


def test_the_command_that_is_copied_exports(browser: Browser, file: Path, tmp_path: Path, run: Run) -> None:
    visit = Visit(browser, permissions=["clipboard-read", "clipboard-write"])
    page = visit.open(file)
    page.locator("#format").select_option("csv")
    page.locator("#copy").click()
    page.locator("#copied", has_text="copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    words = shlex.split(command)
    assert words[:4] == ["dnas", "export", str(run.folder), visit.chosen]
    words[words.index("--out") + 1] = str(tmp_path / "out.csv")
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    export_assignment(run.assignment(visit.chosen), "csv", tmp_path / "exported")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "exported").read_bytes()


def test_controls_of_the_front_show_and_hide(visit: Visit, file: Path) -> None:
    page = visit.open(file)

    def drawn() -> dict[str, Any]:
        return page.evaluate(
            """(() => {
              const { data, layout } = document.getElementById("front-plot");
              const bars = data.some((trace) => trace.error_y && trace.error_y.visible);
              const { type, title } = layout.xaxis;
              return { names: data.map((trace) => trace.name), type, title: title.text, bars };
            })()"""
        )

    before = drawn()
    assert {"search", "uniform", "switchable net", "front"} <= set(before["names"])
    assert (before["type"], before["bars"], before["title"]) == ("log", True, "size (B)")
    for control in ("logarithmic", "bars", "controls", "profiles"):
        page.locator(f"#{control}").click()
    after = drawn()
    assert not {"uniform", "switchable net"} & set(after["names"])
    assert (after["type"], after["bars"]) == ("linear", False)
    page.locator("#cost").select_option("latency_ms")
    assert drawn()["title"] == "latency (ms)"
    assert "cheapest (latency_ms)" in visit.text("#take")


@pytest.mark.parametrize(("metric", "far"), [(ACCURACY, 0.1), (Metric("mae", "smaller"), 40.0)])
def test_the_axis_is_cut_before_outliers_until_they_are_asked_for(
    visit: Visit, tmp_path: Path, metric: Metric, far: float
) -> None:
    values = [0.9, 0.91, 0.92, 0.93, 0.94, 0.935, far]
    material = made_material(len(values), 4)
    points = [
        FrontPoint(name, "sampled", 1000.0 + 10 * at, 2.0, 1.0, Estimate(values[at]), metric=metric)
        for at, name in enumerate(material.assignments)
    ]
    points[-1] = replace(points[-1], bitops=0.5)
    shown = run_json(replace(material, front=ParetoFront.from_points(points)))
    report = {"schema": SCHEMA, "kinds": kinds_json(), "differences": [], "runs": [shown | {"name": "made"}]}
    (tmp_path / "report.html").write_text(page_of(report))
    page = visit.open(tmp_path / "report.html")

    def is_seen() -> bool:
        low, high = page.evaluate("document.getElementById('front-plot')._fullLayout.yaxis.range")
        shown = [low <= metric.scale * value <= high for value in values]
        assert all(shown[:-1])
        return shown[-1]

    assert not is_seen()
    assert visit.text("#far-told") == ("points far below" if metric == ACCURACY else "points far above")
    page.locator("#far").click()
    assert is_seen()
    page.locator("#far").click()
    page.locator("#cost").select_option("bitops")
    assert is_seen(), "over this cost it is on the front"
    page.locator("#far").wait_for(state="hidden")


def test_what_is_drawn_anew_keeps_focus_and_what_was_enlarged(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    page.locator("#profile-rows button").first.focus()
    page.evaluate("Plotly.relayout('front-plot', { 'xaxis.range': [3.7, 3.9] })")
    page.evaluate("dnas.take(dnas.report)")
    assert page.evaluate("document.activeElement.textContent") == "search-1"
    assert page.evaluate("dnas.at('front-plot').layout.xaxis.range") == [3.7, 3.9]


def test_the_ring_and_the_name_of_what_is_chosen_lie_at_its_point_on_either_axis(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.locator("#logarithmic").click()
        for name in ("search-1", "uniform-8"):
            page.locator("#choice").select_option(name)
            x, y = visit.place_of(name)
            ring = page.locator("#ring").bounding_box()
            assert ring
            assert (ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2) == pytest.approx((x, y), abs=2)
            assert visit.text("#ring") == name
    page.evaluate("Plotly.relayout('front-plot', { 'yaxis.range': [10, 20] })")
    page.locator("#ring").wait_for(state="hidden")


def test_an_axis_begins_as_its_cost_asks_for_and_stays_as_somebody_said(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    asked = page.evaluate("dnas.run.costs.map(({ name, log }) => [name, log])")
    assert len({log for _, log in asked}) == 2
    for name, log in asked:
        page.locator("#cost").select_option(name)
        assert page.locator("#logarithmic").is_checked() is log
    page.locator("#logarithmic").click()
    for name, _ in asked:
        page.locator("#cost").select_option(name)
        assert page.locator("#logarithmic").is_checked() is not log


def test_theta_follows_the_slider(visit: Visit, file: Path) -> None:
    page = visit.open(file)
    cells = page.locator("#theta table").first.locator("tbody tr").first.locator("td")
    assert [cells.nth(at).inner_text() for at in range(4)] == ["13", "75", "13", "0.25"]
    page.locator("#epoch").fill("0")
    assert [cells.nth(at).inner_text() for at in range(4)] == ["38", "25", "38", "0.75"]
    assert visit.text("#epoch-told") == "1 of 3"
    assert "search-1: undecided" in visit.text("#search-notes")


def test_names_of_anything_are_text(visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    page = visit.open(written(tmp_path / "report.html", made_run(folder, HOSTILE)))
    page.mouse.click(*visit.place_of("search-1"))
    page.locator("#graph g[tabindex]").nth(1).press("Enter")
    assert page.locator("h1").inner_text() == folder.name
    for name in HOSTILE:
        assert name in visit.text("#layers")
        assert name in visit.text("#graph")
    assert page.locator("img, #layers script, #graph script").count() == 0
    assert "dnas export '" in visit.text("#command")


def test_several_runs_lie_over_one_another(visit: Visit, run: Run, tmp_path: Path) -> None:
    other = made_run(tmp_path / "other", tuple("abcd"))
    page = visit.open(written(tmp_path / "report.html", run, other))
    names = page.evaluate("document.getElementById('front-plot').data.map((trace) => trace.name)")
    groups = ("front", "found", "controls", "profiles of switchable nets")
    assert {f"{run}: {group}" for run in ("made", "other") for group in groups} <= set(names)
    looks = page.evaluate(
        "dnas.at('front-plot').data.map(({ name, marker, line }) => [name, marker?.symbol ?? line.dash])"
    )
    told = dict(looks)
    assert not {told[name] for name in told if "made:" in name} & {told[name] for name in told if "other:" in name}
    page.locator("#run").select_option("1")
    assert page.locator("#layers tbody th").first.inner_text() == "a"
    assert "Settings that differ" in visit.text("#differences")


def test_runs_that_cannot_be_compared_are_not_drawn_together(visit: Visit, run: Run, tmp_path: Path) -> None:
    others = [made_run(tmp_path / name, tuple("abcd")) for name in ("slow", "boxes")]
    shown = report_json([run, *others])
    slow, boxes = shown["runs"][1:]
    slow["costs"] = slow["costs"][:3]
    for point in slow["points"]:
        point["costs"], point["cost_texts"] = point["costs"][:3], point["cost_texts"][:3]
    del slow["fronts"]["latency_ms"]
    boxes["metric"]["axis"] = "mAP (%)"
    path = tmp_path / "report.html"
    path.write_text(page_of(shown))
    page = visit.open(path)

    def drawn() -> set[str]:
        names = page.evaluate("dnas.at('front-plot').data.map((trace) => trace.name)")
        return {name.split(":")[0] for name in names if ": front" in name}

    assert (drawn(), visit.text("#front-told")) == ({"made", "slow"}, "Not drawn: boxes (measured by mAP (%)).")
    page.locator("#cost").select_option("latency_ms")
    assert drawn() == {"made"}
    assert "slow (it does not tell latency_ms)" in visit.text("#front-told")
    page.locator("#run").select_option("1")
    assert "does not tell latency_ms: choose another cost" in visit.text("#take")
    page.locator("#run").select_option("2")
    assert drawn() == {"boxes"}
    assert page.evaluate("dnas.at('front-plot').layout.yaxis.title.text") == "validation mAP (%)"


def test_a_click_where_several_points_lie_goes_from_one_to_the_next(visit: Visit, run: Run, tmp_path: Path) -> None:
    shown = report_json([run])
    [points] = [each["points"] for each in shown["runs"]]
    found, other = (next(point for point in points if point["id"] == id) for id in ("search-1", "uniform-8"))
    other.update({key: found[key] for key in ("costs", "cost_texts", "val")})
    path = tmp_path / "report.html"
    path.write_text(page_of(shown))
    page = visit.open(path)
    at, chosen = visit.place_of("search-1"), []
    for _ in range(3):
        page.mouse.click(*at)
        chosen.append(visit.chosen)
    assert chosen[0] == chosen[2] != chosen[1]
    assert set(chosen) == {"search-1", "uniform-8"}
    assert "also here" in visit.text("#card")


@pytest.mark.parametrize(("finished", "told"), [(False, True), (True, False)])
def test_runs_that_tell_less_are_shown(visit: Visit, tmp_path: Path, finished: bool, told: bool) -> None:
    page = visit.open(written(tmp_path / "report.html", made_run(tmp_path / "run", finished=finished, told=told)))
    assert ("So far" in visit.text("#take")) is not finished
    assert ("earlier version" in page.locator("#network-about").inner_text()) is not told


def test_it_is_read_on_a_telephone_in_the_dark_and_on_paper(browser: Browser, file: Path) -> None:
    visit = Visit(browser, viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = visit.open(file)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    shade = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(shade) == "rgb(20, 24, 29)"
    page.locator("#theme").click()
    assert page.evaluate(shade) == "rgb(255, 255, 255)"
    page.locator("#theme").click()
    page.emulate_media(media="print")
    assert page.evaluate(shade) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("#take").is_visible()
    page.emulate_media(media="screen")
    assert len(page.pdf(format="A4")) > 10_000
    assert visit.complaints == []


@pytest.mark.parametrize("width", [1280, 400])
def test_plots_are_as_wide_as_an_a4_page_while_it_is_printed(browser: Browser, file: Path, width: int) -> None:
    visit = Visit(browser, viewport={"width": width, "height": 900}, color_scheme="dark")
    page = visit.open(file)
    widths = (
        "[...document.querySelectorAll('.plot:not(:empty)')].map((plot) => [plot._fullLayout.width, plot.clientWidth])"
    )
    before = page.evaluate(widths)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawn = page.evaluate(widths)
    assert max(width for width, _ in drawn) == pytest.approx(182 / 25.4 * 96, abs=1)
    assert all(width == own for width, own in drawn)
    assert page.evaluate("getComputedStyle(document.querySelector('#front-plot .xtick text')).fill") == "rgb(0, 0, 0)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(widths) == before
    assert visit.complaints == []
    visit.context.close()


def large(path: Path, count: int) -> Path:
    """The page of so many points of 54 layers."""
    shown = run_json(made_material(count, 54)) | {"name": "large"}
    path.write_text(page_of({"schema": SCHEMA, "kinds": kinds_json(), "runs": [shown], "differences": []}))
    return path


def test_a_click_changes_as_much_of_the_page_whatever_the_number_of_points(visit: Visit, tmp_path: Path) -> None:
    changes = []
    for count in (20, 200):
        page = visit.open(large(tmp_path / "report.html", count))
        page.evaluate(
            """() => {
              window.seen = 0;
              const watched = { subtree: true, childList: true, attributes: true, characterData: true };
              new MutationObserver((found) => { window.seen += found.length; }).observe(document.body, watched);
            }"""
        )
        for point in (3, 7):
            page.evaluate("(number) => dnas.choose(dnas.run.points[number].id)", point)
        page.wait_for_timeout(0)
        changes.append(page.evaluate("window.seen"))
        assert page.locator("#points tr").count() == 0, "rows that nobody has opened"
    assert 0 < changes[1] <= 1.1 * changes[0]


def test_two_thousand_points_are_all_there(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(large(tmp_path / "report.html", 2000))
    drawn = "dnas.at('front-plot').data.map((trace) => (trace.customdata || []).length).reduce((a, b) => a + b)"
    assert page.evaluate(drawn) == 2000
    assert page.locator("#choice option").count() == 2000
