"""How long a report takes, and its page in a browser: CPU and wall seconds, milliseconds of a choice.

``python -m benchmarks.report_page`` makes runs of 30 and of 2,000 assignments of ResNet-20's layers, without any
training, writes the page of each by ``dnas report`` and opens it in the system's Chromium; ``--points N [N...]`` makes
others. A choice is timed from the call that a click makes until the browser has drawn what it changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, sync_playwright

from benchmarks.large_front import make_run, timed
from tests.browsers import Visit, open_browser

CHOICES = 12
CHOOSE = """
(number) => new Promise((resolve) => {
  const begin = performance.now(), { points } = dnas.run;
  dnas.choose(points[Math.floor(number * points.length)].id);
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begin)));
})
"""


def main() -> None:
    """Print a line for every number of points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[30, 2000])
    options = parser.parse_args()
    with TemporaryDirectory() as home, sync_playwright() as playwright, open_browser(playwright) as browser:
        for count in options.points:
            folder, page = Path(home) / f"run-{count}", Path(home) / f"{count}.html"
            make_run(folder, count)
            wall, cpu, code = timed(["report", str(folder), "--out", str(page)])
            told = f"{cpu:.2f} s CPU, {wall:.2f} s wall, {page.stat().st_size / 1e6:.2f} MB, exit {code}"
            print(f"{count} points: {told}; {in_browser(browser, page)}", flush=True)


def in_browser(browser: Browser, path: Path) -> str:
    """When the page was there, and what choices in it take."""
    visit = Visit(browser)
    session = visit.context.new_cdp_session(visit.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    page = visit.open(path)
    there, wall, cpu = page.evaluate("performance.now()") / 1000, [], []
    loaded = cpu_seconds()
    for number in range(CHOICES):
        before = cpu_seconds()
        wall.append(page.evaluate(CHOOSE, (number + 0.5) / CHOICES))
        cpu.append(1000 * (cpu_seconds() - before))
    visit.context.close()
    told = f"{median(cpu):.0f} ms CPU (at most {max(cpu):.0f}), {median(wall):.0f} ms wall (at most {max(wall):.0f})"
    return f"there after {loaded:.1f} s CPU, {there:.1f} s wall; a choice {told}"


if __name__ == "__main__":
    main()
