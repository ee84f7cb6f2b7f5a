"""What is written, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from colours import film
from hypothesis import given
from hypothesis import strategies as st

from vpgfast import find
from vpgfast.data.types import Paragraph
from vpgfast.errors import UserError
from vpgfast.evaluate.split import Answers
from vpgfast.page.content import MOST_POINTS, Content, Lane, Span, Video
from vpgfast.page.media import media_of
from vpgfast.page.results import evaluate_content
from vpgfast.page.write import page_html, write_page


def read(page: str) -> dict:
    """The content of a page's text."""
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    content = Content(text, [Video(text, 1.0, [Lane(text, [Span(0, 1)])])])
    page = page_html(content.as_dict([video.as_dict(None) for video in content.videos]))
    page.encode()  # can be stored
    found = read(page)
    if text.isprintable():
        assert found["title"] == found["videos"][0]["lanes"][0]["sentence"] == text
    assert page.count("<script") == 2


def test_numbers_that_are_none_are_left_out() -> None:
    lane = Lane("x", [Span(0, 1, float("nan"), float("inf"))], np.array([0.0, np.nan, np.inf]))
    page = page_html({"title": "", "videos": [Video("v", 0.0, [lane], score=float("-inf")).as_dict(None)]})
    (video,) = read(page)["videos"]
    assert video["lanes"][0]["spans"] == [{"start": 0, "end": 1, "fits": True}]
    assert video["score"] is None
    assert video["duration"] > 0


@given(st.integers(1, 5000), st.integers(0, 4999))
def test_no_peak_of_a_long_curve_is_lost(length: int, place: int) -> None:
    curve = np.zeros(length)
    curve[place % length] = 1
    drawn = Lane("x", curve=curve).as_dict()["curve"]
    assert len(drawn) == min(length, MOST_POINTS)
    assert max(drawn) == 1
    assert np.argmax(drawn) / len(drawn) == pytest.approx(place % length / length, abs=1 / len(drawn))


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("a.mp4", {}, ""),
        ("a.mov", {}, ""),
        ("a.webm", {"codec": "libvpx-vp9"}, ""),
        ("a.mkv", {}, "H.264"),
        ("a.mp4", {"codec": "mpeg4"}, "-c:v libx264 -pix_fmt yuv420p -c:a aac -movflags +faststart a-h264.mp4"),
        ("a.avi", {"codec": "mpeg4"}, "ffmpeg -i a.avi"),
        ("it's.avi", {"codec": "mpeg4"}, """ffmpeg -i 'it'"'"'s.avi'"""),
        ("-y.avi", {"codec": "mpeg4"}, "ffmpeg -i ./-y.avi"),
        ("a.mp4", {"pix_fmt": "yuv444p"}, "with yuv444p pixels"),
    ],
)
def test_what_browsers_play(tmp_path: Path, name: str, settings: dict, problem: str) -> None:
    media = media_of(film(tmp_path / name, ["red"], **settings))
    assert (problem in media.problem) if problem else not media.problem
    assert media.rate == 10


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    assert "x.mp4" in media_of(tmp_path / "x.mp4").problem


def test_what_can_not_be_played_says_why(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    reasons = {
        tmp_path / "gone.mp4": "gone.mp4 is not there",
        tmp_path / "frames": "frames is a folder of pictures",
        None: "its file is not known",
    }
    for path, reason in reasons.items():
        about = Video("v", 1.0, [], path).as_dict(None)
        assert about["missing"].endswith(f"{reason}.")
    assert Video("v", 1.0, [], missing="Why.").as_dict(None)["missing"] == "Why."


def test_links_are_relative_and_quoted(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    video = film(tmp_path / "100% a#b?:c.mp4", ["red"])
    write_page(tmp_path / "pages" / "new" / "p.html", Content("p", [Video("v", 2.0, [], video)]))
    (found,) = read((tmp_path / "pages" / "new" / "p.html").read_text())["videos"]
    assert found["src"] == "../../100%25%20a%23b%3F%3Ac.mp4"


def test_a_sentence_that_is_true_of_several_moments() -> None:
    several = np.array([[0.0, 2.0], [6.0, 8.0]])
    paragraph = Paragraph("v", 10.0, ("A dog.",), all_spans=(several,), spans=several[:1])
    ranked = np.array([[[6.0, 7.0], [3.0, 4.0], [np.nan, np.nan]]])
    answers = Answers([paragraph], [ranked], [np.array([[0.9, 0.5, -np.inf]])], [np.arange(5.0)[None]])
    (video,) = evaluate_content(answers, {"v"}, {}, "t").videos
    (lane,) = video.lanes
    assert [(span.start, span.end) for span in lane.truth] == [(0, 2), (6, 8)]
    assert [(span.start, span.score, span.iou) for span in lane.spans] == [(6, 0.9, 0.5), (3, 0.5, 0)]
    assert lane.curve is not None
    assert not evaluate_content(answers, {"w"}, {}, "t").videos


def test_too_much_to_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpgfast.page.write.MOST_EMBEDDED", 100)
    content = Content("p", [Video("v", 2.0, [], film(tmp_path / "a.mp4", ["red"]))])
    with pytest.raises(UserError, match="--page-embed: the videos have"):
        write_page(tmp_path / "p.html", content, embed=True)
    assert not (tmp_path / "p.html").exists()


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="nothing can be written there"):
        write_page(tmp_path / "file" / "p.html", Content("p"))


def test_the_page_of_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "a.mp4", ["red", "green"])
    film(tmp_path / "b.mp4", ["blue"])
    page = tmp_path / "page.html"
    asked = [str(tmp_path), "It is green.", "--encoder", "colours", "--page", str(page)]
    assert find.main(asked) == 0
    assert f"page: {page}" in capsys.readouterr().out
    (video,) = read(page.read_text())["videos"]
    assert (video["name"], video["src"], video["begins"]) == ("a", "a.mp4", 0)
    (lane,) = video["lanes"]
    assert lane["spans"][0]["start"] == pytest.approx(2, abs=0.3)
    assert len(lane["curve"]) == 16
    assert find.main([*asked, "--json"]) == 0
    json.loads(capsys.readouterr().out)  # no other line
    asked[1] = "It is yellow."
    assert find.main(asked) == 1
    assert read(page.read_text())["status"] == "Nothing fits."
    assert find.main([*asked, "--all"]) == 1
    assert "the best all the same" in read(page.read_text())["status"]
