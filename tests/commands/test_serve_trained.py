"""``serve`` with trained models: one that finds videos, one that can't."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import tiny_search

from vpgfast.checkpoint import load_checkpoint
from vpgfast.models.registry import METHODS
from vpgfast.serve import library as library_module
from vpgfast.serve.library import Entry, Library
from vpgfast.serve.models import load_model

SENTENCES = ["A red circle moves left.", "Green zigzags."]


@pytest.fixture
def entries(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Three test videos of the tiny corpus, encoded."""
    monkeypatch.setattr(library_module, "STILL", 0.0)
    monkeypatch.setenv("VPGFAST_CACHE", str(tmp_path / "cache"))
    for file in sorted(Path(load_checkpoint(run).settings["data"]["cache"]).rglob("test_*.mp4"))[:3]:
        shutil.copy(file, tmp_path)
    library = Library(tmp_path, load_model(run).encoder, interval=0.02)
    library.start()
    end = time.monotonic() + 60
    while not (found := library.entries()) or any(entry.state != "ready" for entry in found):
        assert time.monotonic() < end
        time.sleep(0.02)
    library.stop()
    return found


def test_a_model_that_can_not_compare_videos(run: Path, entries: list[Entry]) -> None:
    content = load_model(run).answer(entries, SENTENCES, 2)
    assert [video.name for video in content.videos] == [entry.name for entry in entries]
    assert all(len(lane.spans) == 2 for video in content.videos for lane in video.lanes)
    assert "can't say which video fits better" in content.about
    assert content.status == "The model has not seen these words and ignores them: zigzags."


def test_a_model_that_finds_videos(search_run: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, tiny_search.NAME, tiny_search.PLACE)
    content = load_model(search_run).answer(entries, SENTENCES, 2)
    scores = [video.score for video in content.videos]
    assert len(scores) == 2
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    whole = load_model(search_run).answer(entries, SENTENCES, 3)
    assert max(video.score for video in whole.videos) == scores[0]
    assert load_model(search_run).answer([], SENTENCES, 3).videos == []
