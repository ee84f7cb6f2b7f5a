"""Pictures: that they are drawn whatever comes, and say what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vpgfast import plots
from vpgfast.data.types import Paragraph


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, which are saved, too."""
    figures: list[Figure] = []
    honest = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), honest(figure, path)))
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def bars(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """Start and end of the bars of a colour."""
    from matplotlib.colors import to_rgb

    found = [patch for axis in figure.axes for patch in axis.patches if patch.get_facecolor()[:3] == to_rgb(colour)]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in found]


def test_true_and_predicted_spans(tmp_path: Path, drawn: list[Figure]) -> None:
    """Items of a video come together by time; markup in a sentence is text; a missing prediction is no bar."""
    videos = [
        Paragraph("a", 10.0, ("costs $5 or $6", "b"), np.array([[4.0, 6.0], [0.0, 2.0]])),
        Paragraph("b", 70.0, ("alone",), np.array([[0.0, 35.0]])),
        Paragraph("a", 10.0, ("c",), np.array([[7.0, 9.0]])),
    ]
    ranked = [np.array([[[4.0, 7.0]], [[1.0, 2.0]]]), np.full((1, 1, 2), np.nan), np.array([[[0.0, 1.0]]])]
    plots.draw_spans(videos, ranked, tmp_path / "s.png", "title")
    (figure,) = drawn
    assert len(figure.axes) == 2
    assert texts(figure) == [
        "b", "IoU 0.50", "costs $5 or $6", "IoU 0.67", "c", "IoU 0.00", "alone", "IoU 0.00",
    ]  # fmt: skip
    assert bars(figure, plots.TRUE) == [(0, 2), (4, 6), (7, 9), (0, 35)]
    assert bars(figure, plots.PREDICTED) == [(1, 2), (4, 7), (0, 1)]
    assert (tmp_path / "s.png").stat().st_size > 5000


def test_a_video_of_a_hundred_sentences_keeps_the_picture_small(tmp_path: Path, drawn: list[Figure]) -> None:
    spans = np.stack((np.arange(100.0), np.arange(100.0) + 1), axis=1)
    plots.draw_spans([Paragraph("a", 101.0, ("x",) * 100, spans)], [spans[:, None]], tmp_path / "s.png", "")
    assert len(bars(drawn[0], plots.TRUE)) == 8
    assert drawn[0].get_figheight() < 8


def test_ranked_spans_of_one_sentence(tmp_path: Path, drawn: list[Figure]) -> None:
    ranked, scores = np.array([[[1.0, 2.0], [3.0, 9.5]]]), np.array([[0.9, 0.25]])
    plots.draw_ranked(["first"], ranked, scores, 10.0, tmp_path / "g.png", "")
    (figure,) = drawn
    assert len(figure.axes) == 1
    assert texts(figure) == ["first", "1.  1.0 - 2.0 s   (0.9)", "2.  3.0 - 9.5 s   (0.25)"]
    assert bars(figure, plots.PREDICTED) == [(1, 2), (3, 9.5)]


def test_ranked_spans_of_several_sentences_stand_below_the_best_ones(tmp_path: Path, drawn: list[Figure]) -> None:
    ranked = np.array([[[1.0, 2.0], [3.0, 9.5]], [[0.0, 4.0], [np.nan, np.nan]]])
    scores = np.array([[0.9, 0.25], [0.5, -np.inf]])
    plots.draw_ranked(["first", "second"], ranked, scores, 10.0, tmp_path / "g.png", "")
    (figure,) = drawn
    headings = [axis.get_title(loc="left") for axis in figure.axes]
    assert headings == ["best span of each sentence", "ranked spans of each sentence"]
    assert texts(figure) == [
        "1. first", "1.0 - 2.0 s   (0.9)", "2. second", "0.0 - 4.0 s   (0.5)",
        "1. first", "1.  1.0 - 2.0 s   (0.9)", "2.  3.0 - 9.5 s   (0.25)", "2. second", "1.  0.0 - 4.0 s   (0.5)",
    ]  # fmt: skip
    assert bars(figure, plots.PREDICTED) == [(1, 2), (0, 4), (1, 2), (3, 9.5), (0, 4)]
    assert {axis.get_xlim() for axis in figure.axes} == {(0, 10)}


def test_one_span_a_sentence_needs_no_ranks(tmp_path: Path, drawn: list[Figure]) -> None:
    """Rows in the paragraph's order, from the top; the places of missing spans are NaN, as `ground` gives them."""
    count = 30
    ranked = np.full((count, 5, 2), np.nan)
    ranked[:, 0] = np.stack((np.arange(30.0), np.arange(30.0) + 2), axis=1)
    ranked[7] = np.nan
    scores = np.where(np.isfinite(ranked[..., 0]), 0.5, -np.inf)
    plots.draw_ranked(["$x$ " * 99] * count, ranked, scores, 31.0, tmp_path / "g.png", "")
    (figure,) = drawn
    (axis,) = figure.axes
    numbered = [text for text in axis.texts if text.get_text().endswith("...")]
    assert [int(text.get_text().split(".")[0]) for text in numbered] == list(range(1, 31))
    tops = [text.get_position()[1] for text in numbered]
    assert tops == sorted(tops)
    assert axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts].count("no span") == 1
    assert len(bars(figure, plots.TRACK)) == 30
    assert bars(figure, plots.PREDICTED) == [(m, m + 2) for m in range(30) if m != 7]


def test_no_span_at_all(tmp_path: Path, drawn: list[Figure]) -> None:
    for sentences in (["first"], ["first", "second"]):
        empty = np.full((len(sentences), 3, 2), np.nan)
        plots.draw_ranked(sentences, empty, empty[..., 0], 5.0, tmp_path / "g.png", "")
    assert texts(drawn[0]) == ["first", "no span"]
    assert texts(drawn[1]) == ["1. first", "no span", "2. second", "no span"]


def test_spans_without_length_are_seen(tmp_path: Path, drawn: list[Figure]) -> None:
    """At the end of the video, too, where a bar to the right of the start would be cut off."""
    ranked = np.array([[[0.0, 0.0]], [[200.0, 200.0]], [[400.0, 400.0]]])
    plots.draw_ranked(["a", "b", "c"], ranked, np.ones((3, 1)), 400.0, tmp_path / "g.png", "")
    assert bars(drawn[0], plots.PREDICTED) == [(0, 1), (200, 201), (399, 400)]


@pytest.mark.parametrize(
    ("duration", "label"),
    [(1.0, "0.25 - 0.50 s   (1)"), (60.0, "15.0 - 30.0 s   (1)"), (10800.0, "2700 - 5400 s   (1)")],
)
def test_labels_suit_the_length_of_the_video_and_fit(
    tmp_path: Path, drawn: list[Figure], duration: float, label: str
) -> None:
    ranked = duration * np.array([[[0.25, 0.5]], [[0.99, 1.0]]]).repeat(10, axis=1)
    scores = np.full((2, 10), -1.23e-3)
    scores[0, 0] = 1.0
    plots.draw_ranked(["a", "b"], ranked, scores, duration, tmp_path / "g.png", "")
    (figure,) = drawn
    assert label in texts(figure)
    ends = [text.get_window_extent().x1 for axis in figure.axes for text in axis.texts]
    assert max(ends) < figure.bbox.x1


def test_a_picture_stays_within_what_can_be_drawn() -> None:
    """A hundred sentences with fifty spans each would be a hundred thousand pixels high."""
    figure, _ = plots._panels([2200.0], "", row_height=0.5, above=0.0, right=1.0)
    assert 50_000 < figure.bbox.height < 2**16


def test_curves_mark_the_best_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    history = [
        {"epoch": i + 1, "train loss": 1 / (i + 1), "val mIoU": value, "val R@1 IoU=0.5": value / 2}
        for i, value in enumerate([0.1, 0.4, 0.3])
    ]
    plots.draw_curves(history, "mIoU", tmp_path / "t.png", "")
    (figure,) = drawn
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["loss"]
    assert [text.get_text() for text in right.texts] == ["40.0"]
    assert right.texts[0].xy == (2, 40)
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"mIoU", "R@1 IoU=0.5"}


def test_one_epoch_is_enough_for_a_curve(tmp_path: Path) -> None:
    plots.draw_curves([{"epoch": 1, "train loss": 1.0, "val mIoU": 0.2}], "mIoU", tmp_path / "t.png", "")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_found_videos(tmp_path: Path, drawn: list[Figure]) -> None:
    """Every sentence of every video in its place; nothing is drawn of what is missing; ten videos at most."""
    spans = np.array([[1.0, 3.0], [np.nan, np.nan]])
    rows = [("1. a$b^{$   (0.9)", 10.0, (spans, np.array([0.5, np.nan]))), ("2. gone   (0.8)", 20.0, None)]
    rows += [(f"{i}. more", 30.0, (spans + i, np.zeros(2))) for i in range(3, 15)]
    plots.draw_found(["costs $5 or $6", "b"], rows, tmp_path / "p.png", "found")
    (figure,) = drawn
    assert [axis.get_title(loc="left") for axis in figure.axes] == [heading for heading, _, _ in rows[:10]]
    assert [axis.get_xlim()[1] for axis in figure.axes[:3]] == [10, 20, 30]
    assert bars(figure, plots.PREDICTED) == [(1, 3), *((1 + i, 3 + i) for i in range(3, 11))]
    labels = ["1. costs $5 or $6", "1.0 - 3.0 s   (0.5)", "2. b", "no span", "1.  not grounded", "2.  not grounded"]
    assert texts(figure)[:6] == labels
    assert texts(figure)[6:8] == ["1.  4.0 - 6.0 s   (0)", "2.  no span"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
