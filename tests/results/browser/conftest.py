"""One browser for all tests here, and a page of their own for each, which must have complained of nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browsers import Visit, open_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, open_browser(playwright) as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    found = Visit(browser)
    yield found
    assert found.complaints == []
    found.context.close()
