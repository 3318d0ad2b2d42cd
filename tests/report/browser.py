"""Pages in headless Chromium, with what the browser complains of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DESKTOP, PHONE = (1280, 850), (390, 844)


@contextmanager
def started() -> Iterator[Any]:
    """A browser; without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, file: Path, *, size: tuple[int, int] = DESKTOP, scheme: str = "light"
) -> Iterator[tuple[Any, list[str]]]:
    """The page, drawn, and what went wrong in it: errors, and requests that leave the disk."""
    wrong: list[str] = []

    def asked(request: Any) -> None:
        if request.url.partition(":")[0] not in ("file", "data", "blob"):
            wrong.append(request.url)

    def told(message: Any) -> None:
        if message.type == "error":
            wrong.append(message.text)

    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.on("console", told)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", asked)
    page.goto(file.as_uri())
    page.wait_for_selector("#serving .main-svg")
    yield page, wrong
    page.close()
