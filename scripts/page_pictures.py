#!/usr/bin/env python3
"""The pictures of the page in the docs, docs/images/page_*.png: taken in a browser without a window.

python scripts/page_pictures.py FOLDER_OF_VIDEOS --video women_long_jump.mp4
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from vpgfast import ground

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SENTENCES = ("A street sign.", "A volleyball court.", "Parallel bars.")
WIDE, TALL = {"width": 1240, "height": 740}, {"width": 1240, "height": 960}
NARROW = {"width": 390, "height": 780}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of videos")
    parser.add_argument("--video", required=True, help="name of the one that the sentences are about")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        library = Path(place) / "videos"
        library.mkdir()
        for video in arguments.folder.rglob("*.mp4"):
            shutil.copy(video, library)
        page = Path(place) / "page.html"
        asked = [part for sentence in SENTENCES for part in ("--sentence", sentence)]
        video = ["--video", str(library / arguments.video), "--top", "3", "--output", place]
        assert ground.main(["objects", *video, *asked, "--page", str(page)]) == 0
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, size, colours in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("narrow", NARROW, "light")):
            with _opened(browser, page.as_uri(), size, colours) as tab:
                _choose(tab, IMAGES / f"page_{name}.png")
        with _served(library) as address, _opened(browser, address, TALL, "dark") as tab:
            tab.wait_for_function("ready > 1")
            tab.keyboard.type(" ".join(SENTENCES[:2]))
            tab.locator(".lane").first.wait_for(timeout=60_000)
            tab.keyboard.press("Enter")
            tab.locator(".span:focus").wait_for()
            _choose(tab, IMAGES / "page_served.png")
        browser.close()


@contextlib.contextmanager
def _opened(browser: Any, address: str, size: dict[str, int], colours: str) -> Iterator[Any]:
    context = browser.new_context(viewport=size, color_scheme=colours)
    tab = context.new_page()
    tab.goto(address)
    yield tab
    context.close()


@contextlib.contextmanager
def _served(library: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "vpgfast.serve", "objects", "--library", str(library), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def _choose(tab: Any, target: Path) -> None:
    """Go to the second sentence's best span, a little into it."""
    tab.keyboard.press("ArrowDown")
    tab.wait_for_function("player.readyState > 1 && !player.seeking && player.currentTime > 1")
    tab.evaluate("player.currentTime += 3.5")
    tab.wait_for_function("player.readyState > 1 && !player.seeking")
    tab.evaluate("player.removeAttribute('controls'); document.activeElement.blur(); movePlayheads()")
    tab.wait_for_timeout(500)
    tab.screenshot(path=target)
    print(target)


if __name__ == "__main__":
    main()
