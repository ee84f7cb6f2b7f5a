"""A browser for the page: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import colours
import pytest

from vpgfast.encoders.specs import ENCODERS

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
REQUIRED = "VPGFAST_REQUIRE_BROWSER"


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setitem(ENCODERS, "colours", colours.PLACE)
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path_factory.getbasetemp() / "page-cache"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of a module, since Playwright keeps an event loop in this thread while it runs."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    reason = "no Chromium on this machine (apt-get install chromium)"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program, reason = None, "playwright is missing (the extra `test` brings it)"
    if program is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a page; in the end nothing may have gone wrong in it, or been asked of anyone else."""
    contexts, wrong = [], []

    def open_page(address: str | Path, allowed: str = "", **settings: Any) -> Any:
        own = allowed or (address.as_uri().rsplit("/", 1)[0] if isinstance(address, Path) else address)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((own, "blob:", "data:")) else wrong.append(request.url),
        )
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        return page

    open_page.wrong = wrong  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
