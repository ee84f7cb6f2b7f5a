from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from data_helpers import paragraph

from vpgfast.data.options import SimulatedOptions
from vpgfast.data.simulated import SentenceMap, SimulatedFeatures
from vpgfast.data.text import load_word_vectors
from vpgfast.errors import ConfigError, FeatureError

VECTORS = load_word_vectors(None, [f"w{i}" for i in range(40)], dim=50)
QUIET = SimulatedOptions(dim=24, video_offset=0, clip_noise=0, min_clips=1, clips_per_second=4.0)


def corpus(count: int = 20):
    """Video i shows sentence i at [1, 3] seconds and sentence i + 20 at [2, 6], of 10."""
    spans = np.array([[1.0, 3.0], [2.0, 6.0]])
    return [replace(paragraph(f"v{i}"), sentences=(f"w{i}", f"w{i + 20}"), spans=spans) for i in range(count)]


def test_sentence_map():
    """idf-weighted means by hand: three sentences, `w0` in two of them (idf ln 2.5), the others in one (ln 4)."""
    v = {i: VECTORS.vectors[VECTORS.index(f"w{i}")].astype(float) for i in range(3)}
    a, b = np.log(1 + 3 / 2), np.log(1 + 3)
    raw = np.stack([(a * v[0] + b * v[1]) / (a + b), v[0], v[2]])
    raw -= raw.mean(axis=0)
    sentences = ["w0 w1", "W0.", "w2"]
    mapping, made = SentenceMap.of(sentences, VECTORS)
    np.testing.assert_array_equal(mapping(sentences), made)
    np.testing.assert_allclose(made, raw / raw.std())
    assert made.std() == pytest.approx(1)
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-12)


def test_clips_show_the_sentences_active_in_them():
    paragraphs = corpus()
    features = SimulatedFeatures(paragraphs, VECTORS, QUIET)
    meanings = features._meanings
    clips = features["v3"]
    assert (clips.shape, clips.dtype) == ((40, 24), np.float32)
    one, two = meanings[6], meanings[7]
    centres = (np.arange(40) + 0.5) / 4
    for clip, centre in zip(clips, centres, strict=True):
        if 1 <= centre < 2:
            np.testing.assert_allclose(clip, one, rtol=1e-5)
        elif 2 <= centre < 3:
            np.testing.assert_allclose(clip, (one + two) / 2, rtol=1e-5, atol=1e-6)
        elif 3 <= centre < 6:
            np.testing.assert_allclose(clip, two, rtol=1e-5)
        else:  # 0.7 x another video's sentence
            distance = np.abs(clip - 0.7 * meanings).max(axis=1)
            assert distance.min() < 1e-5
            assert distance.argmin() not in (6, 7)


def test_background_is_piecewise_constant():
    far = [replace(p, duration=200.0) for p in corpus()]
    clips = SimulatedFeatures(far, VECTORS, QUIET)["v0"][6 * 4 :]
    edges = np.flatnonzero(np.abs(np.diff(clips, axis=0)).max(axis=1) > 1e-6)
    lengths = np.diff(edges) / 4
    assert lengths.min() >= 2
    assert lengths.max() <= 16  # two stretches may happen to show the same sentence
    assert 3 < lengths.mean() < 8


def test_offset_and_noise():
    options = replace(QUIET, dim=400, video_offset=0.5, clip_noise=1.0)
    same = replace(QUIET, dim=400)
    paragraphs = corpus()
    # The draws before the noise are the same, so what is added stands alone.
    added = SimulatedFeatures(paragraphs, VECTORS, options)["v0"] - SimulatedFeatures(paragraphs, VECTORS, same)["v0"]
    offset = added.mean(axis=0)
    assert offset.std() == pytest.approx(np.hypot(0.5, 1 / np.sqrt(40)), rel=0.15)
    assert (added - offset).std() == pytest.approx(1.0, rel=0.05)


def test_depends_on_seed_and_video_alone():
    paragraphs = corpus()
    first, second = SimulatedFeatures(paragraphs, VECTORS), SimulatedFeatures(paragraphs, VECTORS)
    b, a = second["v5"], second["v4"]  # in another order
    np.testing.assert_array_equal(first["v4"], a)
    np.testing.assert_array_equal(first["v5"], b)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first))["v5"], b)
    assert not np.allclose(SimulatedFeatures(paragraphs, VECTORS, seed=1)["v5"], b)
    assert first.source == "simulated (seed 0)"
    assert "v5" in first
    assert "x" not in first
    assert list(first.video_ids()) == [f"v{i}" for i in range(20)]


def test_number_of_clips():
    paragraphs = [replace(paragraph("short"), duration=2.5), replace(paragraph("long"), duration=5000.0)]
    features = SimulatedFeatures(paragraphs, VECTORS, SimulatedOptions(clips_per_second=2.0))
    assert len(features["short"]) == 8
    assert len(features["long"]) == 1024
    assert np.isfinite(features["long"]).all()


def test_a_moment_shorter_than_a_clip_shows():
    brief = [replace(p, spans=np.array([[5.01, 5.02], [7.0, 9.0]])) for p in corpus()]
    features = SimulatedFeatures(brief, VECTORS, replace(QUIET, clips_per_second=1.0))
    np.testing.assert_allclose(features["v0"][5], features._meanings[0], rtol=1e-5)


def test_several_paragraphs_of_one_video():
    a, b = corpus(2)
    both = [a, replace(b, video_id="v0"), *corpus(4)[2:]]
    features = SimulatedFeatures(both, VECTORS, QUIET)
    np.testing.assert_allclose(
        features["v0"][5], (features._meanings[0] + features._meanings[2]) / 2, rtol=1e-4, atol=1e-6
    )


def test_what_can_not_be_simulated():
    with pytest.raises(FeatureError, match="spans are not known"):
        SimulatedFeatures([replace(paragraph("a"), spans=None)], VECTORS)
    with pytest.raises(FeatureError, match="no sentence"):
        SimulatedFeatures([], VECTORS)
    with pytest.raises(FeatureError, match="'x' are missing"):
        SimulatedFeatures(corpus(), VECTORS)["x"]
    with pytest.raises(ConfigError, match="option max_clips is 3"):
        SimulatedOptions(min_clips=4, max_clips=3)


def test_single_video_corpus():
    assert np.isfinite(SimulatedFeatures([paragraph("a")], VECTORS)["a"]).all()


def test_its_own_text_tower():
    """Sentences of the corpus mean what its clips are made of; others are read by the same map."""
    features = SimulatedFeatures(corpus(), VECTORS, QUIET)
    read = features.encode_text(["w3", "w23", "w3 w23"]).numpy()
    np.testing.assert_allclose(read[:2], features._meanings[[6, 7]], rtol=1e-5)
    assert not np.allclose(read[2], read[0])
