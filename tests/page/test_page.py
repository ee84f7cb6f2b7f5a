"""The page in a browser: plays, stops, keys, downloads, colours, and no word to anyone."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import no_serious_fault, stopped_at
from colours import film

from vpgfast.page.content import Content, Lane, Span, Video
from vpgfast.page.write import write_page

HOSTILE = '</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 1"> "quoted", & {{script}} <!--'
Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "films").mkdir()
    film(folder / "films" / "a #1 50%.mp4", ["red", "green", "blue"], rate=25)
    film(folder / "films" / "b.webm", ["blue", "red"], codec="libvpx-vp9", deadline="realtime", cpu_used="8")
    film(folder / "films" / "old.avi", ["red"], codec="mpeg4")
    return folder


def content(place: Path) -> Content:
    films = place / "films"
    curve = np.sin(np.arange(24) / 3)
    first = [Span(1.0, 2.5, 0.5), Span(4.0, 5.2, 0.25), Span(1.2, 2.2, 0.1, fits=False)]
    videos = [
        Video(
            "a",
            6.0,
            [Lane("It is red.", first, curve), Lane(HOSTILE, [Span(3, 4, 0.3)], -curve)],
            films / "a #1 50%.mp4",
        ),
        Video("b", 4.0, [Lane("It is blue.", [Span(0.4, 1.6, iou=0.6)], truth=[Span(0, 2)])], films / "b.webm"),
        Video("old", 2.0, [Lane("It is red.", [Span(0, 1)])], films / "old.avi"),
        Video("gone", 2.0, [Lane("Nothing is found.")], films / "gone.mp4"),
    ]
    return Content("moments <b>", videos, "A test.", "5 spans")


@pytest.fixture(scope="module")
def page_file(place: Path) -> Path:
    write_page(place / "page.html", content(place))
    return place / "page.html"


def colour(page: Any) -> list[int]:
    """Of the picture on show."""
    script = """() => { const c = document.createElement("canvas").getContext("2d");
        c.drawImage(player, 0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); }"""
    return page.evaluate(script)


def test_a_click_plays_a_span_and_stops_at_its_end(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    page.locator(".span").nth(0).click()
    assert 2.4 < stopped_at(page, 1.0) <= 2.5  # no picture of what comes after it
    page.locator(".bar").nth(1).click()
    assert stopped_at(page, 4.0) == pytest.approx(5.2, abs=0.1)
    page.wait_for_timeout(300)
    assert page.evaluate("player.paused")


def test_another_video_plays_too_and_the_newest_wish_counts(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    page.locator(".span").nth(0).click()
    page.locator(".video").nth(1).locator(".span").nth(1).click()
    assert stopped_at(page, 0.4) == pytest.approx(1.6, abs=0.1)
    assert page.evaluate("player.currentSrc").endswith("films/b.webm")
    page.locator(".track").nth(0).click(position={"x": 2, "y": 2})
    page.wait_for_function("player.currentSrc.includes('50%25') && player.currentTime < 0.2")


def test_keys(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    chosen = lambda: page.locator("[aria-current=true]").text_content()  # noqa: E731
    assert "0:00:01.0" in chosen()
    page.keyboard.press("ArrowRight")
    assert "0:00:04.0" in chosen()
    page.keyboard.press("Enter")
    assert stopped_at(page, 4.0) == pytest.approx(5.2, abs=0.1)
    page.keyboard.press("ArrowDown")
    assert "0:00:03.0" in chosen()
    page.keyboard.press("ArrowDown")
    assert "true" in chosen()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")  # over to the sentence before
    assert "0:00:01.2" in chosen()
    page.keyboard.press(" ")
    page.wait_for_function("!player.paused")
    page.keyboard.press("Escape")
    page.wait_for_function("player.paused")
    page.keyboard.press("/")
    page.keyboard.type("blue/")
    assert page.locator("#words").input_value() == "blue/"
    page.keyboard.press("Backspace")
    assert page.locator(".lane:visible").count() == 1
    assert page.locator("#status").text_content() == "1 of 5 sentences"
    page.keyboard.press("Enter")
    assert "true" in chosen()
    page.keyboard.press("Enter")
    assert stopped_at(page, 0.5) == pytest.approx(2.0, abs=0.1)


def test_the_players_own_arrows_do_not_seek(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    page.locator("#player").focus()
    page.keyboard.press("ArrowRight")
    assert "0:00:04.0" in page.locator("[aria-current=true]").text_content()


def test_text_is_text(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    assert page.evaluate("window.hurt") is None
    assert HOSTILE in page.locator(".sentence").nth(1).text_content()
    assert page.locator("h1").text_content() == page.title() == "moments <b>"
    assert page.locator("#found img, #found script").count() == 0


def test_what_browsers_do_not_play_is_said(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)
    page.locator(".video").nth(2).locator(".span").click()
    note = page.locator("#note")
    note.wait_for(state="visible")
    assert "MPEG-4 part 2" in note.text_content()
    assert "ffmpeg -i old.avi" in note.text_content()
    assert "gone.mp4 is not there" in page.locator(".video").nth(3).text_content()
    page.locator(".video").nth(1).locator(".span").nth(0).click()
    note.wait_for(state="hidden")


def test_a_video_that_was_moved_away_is_said(opened: Opened, place: Path, tmp_path: Path) -> None:
    video = film(tmp_path / "c.mp4", ["red"])
    write_page(tmp_path / "c.html", Content("c", [Video("c", 2.0, [Lane("Red.", [Span(0, 1)])], video)]))
    video.unlink()
    page = opened(tmp_path / "c.html")
    page.locator("#note").wait_for(state="visible")
    assert "can't play c.mp4" in page.locator("#note").text_content()
    opened.wrong[:] = [text for text in opened.wrong if "ERR_FILE_NOT_FOUND" not in text]


def test_downloads(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)

    def taken(kind: str) -> str:
        with page.expect_download() as waiting:
            page.locator(f"[data-kind={kind}]").click()
        assert waiting.value.suggested_filename.endswith(f".{kind}")
        return Path(waiting.value.path()).read_bytes().decode()

    found = json.loads(taken("json"))
    assert [video["video"] for video in found["videos"]] == ["a", "b", "old", "gone"]
    assert found["videos"][0]["sentences"][0]["spans"][0] == {"start": 1, "end": 2.5, "fits": True, "score": 0.5}
    assert len(found["videos"][0]["sentences"][0]["curve"]) == 24
    assert found["videos"][1]["sentences"][0]["true"] == [{"start": 0, "end": 2}]

    rows = list(csv.DictReader(io.StringIO(taken("csv"), newline="")))
    assert [(row["video"], row["kind"], row["start"]) for row in rows[3:6]] == [
        ("a", "found", "3.000"),
        ("b", "true", "0.000"),
        ("b", "found", "0.400"),
    ]
    assert rows[3]["sentence"] == HOSTILE
    assert [row["fits"] for row in rows[1:5]] == ["true", "false", "true", ""]

    srt = taken("srt")
    first, second = srt.strip().split("\n\n")
    assert first.splitlines() == ["1", "00:00:01,000 --> 00:00:02,500", "It is red."]
    assert second.splitlines()[:2] == ["2", "00:00:03,000 --> 00:00:04,000"]
    page.locator("#every").check()
    assert taken("srt").count("-->") == 4

    edl = taken("edl").splitlines()
    assert edl[:2] == ["TITLE: a", "FCM: NON-DROP FRAME"]
    events = [line for line in edl if re.match(r"\d{3}  ", line)]
    assert events[0] == "001  AX       V     C        00:00:01:00 00:00:02:13 00:00:00:00 00:00:01:13"
    for line in events:
        assert re.fullmatch(r"\d{3}  AX {7}V {5}C {8}(\d\d:\d\d:\d\d:\d\d ?){4}", line)
    assert "* FROM CLIP NAME: a #1 50%.mp4" in edl


def test_edit_lists_of_odd_frame_rates(opened: Opened, page_file: Path) -> None:
    page = opened(page_file)

    def event(rate: float, start: float, end: float) -> str:
        video = {
            "name": "v",
            "file": "v",
            "rate": rate,
            "lanes": [{"sentence": "s", "spans": [{"start": start, "end": end, "fits": True}]}],
        }
        return page.evaluate("video => asEdl(video, false)", video).splitlines()[3].split("C        ")[1]

    # An hour at 29.97 frames a second has 107,892 frames, which non-drop timecode calls 0:59:56:12.
    assert event(30000 / 1001, 3600, 3601).startswith("00:59:56:12 00:59:57:12")
    assert event(120, 1.5, 2).startswith("00:00:01:30 00:00:02:00")
    assert event(10, 1, 1).startswith("00:00:01:00 00:00:01:01")


def test_dark_light_and_narrow(opened: Opened, page_file: Path) -> None:
    page = opened(page_file, color_scheme="dark", viewport={"width": 390, "height": 800})
    theme = lambda: page.evaluate("document.documentElement.dataset.theme")  # noqa: E731
    assert theme() == "dark"
    no_serious_fault(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#theme").click()
    assert theme() == "light"
    no_serious_fault(page)
    page.reload()
    assert theme() == "light"


def test_embedded(opened: Opened, place: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "whole.html", content(place), embed=True)
    page = opened(tmp_path / "whole.html")
    page.locator(".span").nth(3).click()
    assert stopped_at(page, 3.0) == pytest.approx(4.0, abs=0.1)
    red, green, blue = colour(page)
    assert green > 150 > red + blue
    assert page.evaluate("player.currentSrc").startswith("blob:")
    no_serious_fault(page)


def test_a_video_that_starts_late(opened: Opened, tmp_path: Path) -> None:
    """The browser's clock is the package's: seconds from the container's start."""
    shift = {"shift": lambda seconds: seconds + 5, "codec": "libvpx-vp9", "deadline": "realtime", "cpu_used": "8"}
    video = film(tmp_path / "late.webm", ["red", "green", "blue"], **shift)
    lane = Lane("Green.", [Span(2.5, 3.5)])
    write_page(tmp_path / "late.html", Content("late", [Video("late", 6.0, [lane], video)]), embed=True)
    page = opened(tmp_path / "late.html")
    page.wait_for_function("player.readyState >= 2 && !player.seeking && Math.abs(player.currentTime - 7.5) < 0.01")
    red, green, blue = colour(page)
    assert green > 150 > red + blue
