#!/usr/bin/env python3
"""Pictures of a page for the docs, as a browser draws it: light, dark and narrow. Needs playwright and chromium.

python -m vpgfast.ground objects --video clip.mp4 --sentence "..." --page page.html
python scripts/page_pictures.py page.html docs/images
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

LOOKS = {"light": ("light", 1280, 700), "dark": ("dark", 1280, 700), "narrow": ("light", 420, 860)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (scheme, width, height) in LOOKS.items():
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            page = context.new_page()
            page.goto(arguments.page.absolute().as_uri())
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Enter")
            page.wait_for_timeout(1000)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=arguments.folder / f"page_{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
