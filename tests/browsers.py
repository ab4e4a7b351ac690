"""A real browser, where there is one (the system's Chromium, driven by playwright), and a server for it to visit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright

from dnas.commands import serving
from results.server.app import application, server
from results.server.shelf import Shelf

PATIENCE_MS = 240_000
"""A machine on which others compute may take minutes for what takes a second."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def open_browser(playwright: Playwright) -> Browser:
    """Chromium; the test is skipped where none is installed."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


class Visit:
    """A page that is open, with everything that it complained of and asked for."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str | Path) -> Page:
        """Load a page and wait until a configuration is chosen in it."""
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        self.page.locator("html[data-chosen]").wait_for(state="attached")
        return self.page

    def until(self, expression: str) -> None:
        """Wait until this is true in the page, whose policy lets nobody wait for it there."""
        for _ in range(PATIENCE_MS // 50):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it never came to: {expression}")

    @property
    def chosen(self) -> str:
        """The configuration that the page shows."""
        return str(self.page.evaluate("document.documentElement.dataset.chosen"))

    def place_of(self, name: str) -> tuple[float, float]:
        """Where the picture of the front draws a configuration, in pixels of the window."""
        self.page.locator("#front-plot").scroll_into_view_if_needed()
        x, y = self.page.evaluate(
            """(name) => {
              const plot = document.getElementById("front-plot"), box = plot.getBoundingClientRect();
              const { xaxis, yaxis } = plot._fullLayout;
              for (const { x, y, customdata } of plot.data) {
                const at = (customdata || []).findIndex(([, id]) => id === name);
                if (at < 0) continue;
                return [box.x + xaxis._offset + xaxis.d2p(x[at]), box.y + yaxis._offset + yaxis.d2p(y[at])];
              }
            }""",
            name,
        )
        return x, y

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.page.locator(selector).inner_text()


@contextmanager
def serving_runs(runs: Path, token: str | None = None) -> Iterator[str]:
    """The address of a server in a thread."""
    found = server(application(Shelf(parent=runs), token=token))
    with serving._listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=found.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            found.should_exit = True
            thread.join()
