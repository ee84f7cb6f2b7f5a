from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from data_helpers import paragraph

from vpgfast.data.batches import BucketSampler, choose_labelled, make_batch, make_loader, prepare
from vpgfast.data.features import ArrayFeatures
from vpgfast.data.text import WordVectors, char_ids, load_word_vectors
from vpgfast.data.types import Batch, BatchNeeds
from vpgfast.errors import AnnotationError, ConfigError, FeatureError

VECTORS = load_word_vectors(None, [f"w{i}" for i in range(20)], dim=4)
PARAGRAPH = BatchNeeds(level="paragraph")


def equal(a: Batch, b: Batch) -> bool:
    def same(x, y) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    names = ("video", "video_mask", "words", "word_mask", "sentence_mask", "durations", "chars", "spans", "labelled")
    return [p.video_id for p in a.paragraphs] == [p.video_id for p in b.paragraphs] and all(
        same(getattr(a, name), getattr(b, name)) for name in names
    )


class TestPrepare:
    def test_sentence_level_splits(self):
        items = prepare([paragraph("a", 3), paragraph("b", 1)], BatchNeeds(), training=True)
        assert [(p.video_id, p.sentences, p.spans.tolist()) for p in items] == [
            ("a", ("w2 w2 w2",), [[2, 3]]),
            ("a", ("w1 w1 w1",), [[1, 2]]),
            ("a", ("w0 w0 w0",), [[0, 1]]),
            ("b", ("w0 w0 w0",), [[0, 1]]),
        ]

    def test_paragraph_level_sorts_by_time(self):
        (item,) = prepare([paragraph("a", 3)], PARAGRAPH, training=True)
        assert item.sentences == ("w0 w0 w0", "w1 w1 w1", "w2 w2 w2")
        assert item.spans[:, 0].tolist() == [0, 1, 2]
        (item,) = prepare([paragraph("a", 3)], replace(PARAGRAPH, sentence_order="file"), training=True)
        assert item.spans[:, 0].tolist() == [2, 1, 0]

    def test_order_of_a_users_own_sentences_stays(self):
        query = replace(paragraph("a", 3), spans=None)
        (item,) = prepare([query], PARAGRAPH, training=False)
        assert item.sentences == query.sentences

    def test_annotators_move_along(self):
        marks = tuple(np.array([[m, m + 1.0]] * 4) for m in (2, 1, 0))
        (item,) = prepare([replace(paragraph("a", 3), annotator_spans=marks)], PARAGRAPH, training=True)
        assert [m[0, 0] for m in item.annotator_spans] == [0, 1, 2]

    def test_long_paragraphs(self):
        needs = replace(PARAGRAPH, max_sentences=4)
        assert [len(p.sentences) for p in prepare([paragraph("a", 10)], needs, training=True)] == [4]
        pieces = prepare([paragraph("a", 10), paragraph("b", 4)], needs, training=False)
        assert [(p.video_id, len(p.sentences)) for p in pieces] == [("a", 4), ("a", 4), ("a", 2), ("b", 4)]
        assert [s for p in pieces[:3] for s in p.spans[:, 0]] == list(range(10))


class TestLabelledShare:
    """Training with the spans of some of the paragraphs."""

    paragraphs = tuple(
        replace(paragraph(f"v{i}", 1 + i % 4), annotator_spans=tuple(np.ones((4, 2)) for _ in range(1 + i % 4)))
        for i in range(40)
    )

    def labelled(self, share: float, seed: int = 0, level: str = "paragraph") -> set[str]:
        """Videos of the items that keep their labels, each kept or taken off as a whole."""
        items = prepare(self.paragraphs, BatchNeeds(level=level, labelled_share=share), training=True, seed=seed)
        kept = {p.video_id for p in items if p.spans is not None}
        for item in items:
            assert (item.spans is None) == (item.annotator_spans is None) == (item.video_id not in kept)
        return kept

    @pytest.mark.parametrize("level", ["paragraph", "sentence"])
    @pytest.mark.parametrize(("share", "count"), [(0, 0), (1e-6, 1), (0.1, 4), (0.5, 20), (1, 40)])
    def test_share_of_the_paragraphs(self, share, count, level):
        assert len(self.labelled(share, level=level)) == count
        assert self.labelled(share, level=level) == self.labelled(share)

    def test_smaller_shares_are_part_of_larger_ones(self):
        choices = [self.labelled(share) for share in np.linspace(0, 1, 21)]
        assert all(small < large for small, large in pairwise(choices))

    def test_the_seed_chooses(self):
        assert self.labelled(0.5, seed=1) == self.labelled(0.5, seed=1)
        assert self.labelled(0.5, seed=1) != self.labelled(0.5, seed=2)

    def test_every_paragraph_is_as_likely(self):
        counts = np.sum([choose_labelled(20, 0.25, seed) for seed in range(400)], axis=0)
        assert counts.sum() == 400 * 5
        assert abs(counts - 100).max() < 45  # five standard deviations

    def test_no_paragraph_at_all(self):
        assert prepare([], replace(PARAGRAPH, labelled_share=0.5), training=True) == []

    def test_sorted_before_labels_are_taken_off(self):
        (item,) = prepare([paragraph("a", 3)], replace(PARAGRAPH, labelled_share=0), training=True)
        assert item.sentences == ("w0 w0 w0", "w1 w1 w1", "w2 w2 w2")
        assert item.spans is None

    def test_evaluation_keeps_all(self):
        items = prepare(self.paragraphs, replace(PARAGRAPH, labelled_share=0.1), training=False)
        assert all(p.spans is not None and p.annotator_spans is not None for p in items)

    @pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
    def test_share_outside_0_to_1(self, share):
        with pytest.raises(ConfigError, match=r"labelled_share is .* from 0 \(none\) to 1 \(all\)"):
            BatchNeeds(labelled_share=share)

    def test_missing_labels_are_named(self):
        """Not trained on as if the moment were at 0."""
        query = replace(paragraph("a"), spans=None)
        with pytest.raises(AnnotationError, match="video 'a' has no spans"):
            prepare([query], PARAGRAPH, training=True)
        assert len(prepare([query], replace(PARAGRAPH, labelled_share=0), training=True)) == 1

    @pytest.mark.parametrize("level", ["paragraph", "sentence"])
    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
    def test_loader(self, share, level):
        """Batches hold exactly the chosen labels; those of the others are NaN here and reach no batch."""
        chosen = choose_labelled(40, share, seed=3)
        poisoned = [
            p
            if label
            else replace(p, spans=p.spans * np.nan, annotator_spans=tuple(x * np.nan for x in p.annotator_spans))
            for p, label in zip(self.paragraphs, chosen, strict=True)
        ]
        features = ArrayFeatures({p.video_id: np.ones((3, 4)) for p in poisoned})
        needs = BatchNeeds(level=level, labelled_share=share, sentence_order="file")
        loader = make_loader(poisoned, features, VECTORS, needs, 4, training=True, seed=3)
        names = {p.video_id for p, label in zip(poisoned, chosen, strict=True) if label}
        seen = set()
        for batch in loader:
            expected = torch.tensor([p.video_id in names for p in batch.paragraphs])
            seen |= {p.video_id for p in batch.paragraphs}
            for p in batch.paragraphs:
                assert (p.spans is None) == (p.annotator_spans is None) == (p.video_id not in names)
            if not expected.any():
                assert batch.spans is None
                assert batch.labelled is None
                continue
            assert torch.equal(batch.labelled, expected)
            assert batch.spans.isfinite().all()
            assert torch.equal((batch.spans[..., 1] > 0), batch.sentence_mask & expected[:, None])
        assert len(seen) == 40


class TestMakeBatch:
    def test_shapes_masks_and_padding(self):
        items = [paragraph("a", 3, words=2), paragraph("b", 1, duration=20.0, words=5)]
        features = [np.full((4, 6), 7, np.float32), np.full((9, 6), 8, np.float32)]
        batch = make_batch(items, features, VECTORS, replace(PARAGRAPH, chars=True), training=True)
        assert len(batch) == 2
        assert (batch.video.shape, batch.video.dtype) == ((2, 9, 6), torch.float32)
        assert batch.video_mask.sum(1).tolist() == [4, 9]
        assert torch.equal(batch.video[0, :, 0], torch.tensor([7.0] * 4 + [0.0] * 5))
        assert (batch.words.shape, batch.words.dtype) == ((2, 3, 5), torch.int64)
        assert batch.words[0, 0].tolist() == [VECTORS.index("w2")] * 2 + [0] * 3
        assert torch.equal(batch.word_mask, batch.words != 0)
        assert batch.sentence_mask.tolist() == [[True] * 3, [True, False, False]]
        assert (batch.durations.tolist(), batch.durations.dtype) == ([10.0, 20.0], torch.float64)
        assert batch.spans.dtype == torch.float32
        torch.testing.assert_close(batch.spans[0], torch.tensor([[0.2, 0.3], [0.1, 0.2], [0.0, 0.1]]))
        torch.testing.assert_close(batch.spans[1], torch.tensor([[0.0, 0.05], [0, 0], [0, 0]]))
        assert batch.labelled.tolist() == [True, True]
        assert batch.chars.shape == (2, 3, 5, 2)
        assert batch.chars[0, 0, 0].tolist() == char_ids("w2")
        assert torch.equal((batch.chars != 0).any(-1), batch.word_mask)

    def test_long_sentences_are_cut(self):
        batch = make_batch(
            [paragraph(words=9)], [np.ones((2, 3))], VECTORS, replace(PARAGRAPH, max_words=4), training=True
        )
        assert batch.words.shape[2] == 4

    def test_clips_are_brought_down_or_to_a_fixed_number(self):
        features = [np.ones((3, 2), np.float32), np.ones((99, 2), np.float32)]
        items = [paragraph("a"), paragraph("b")]
        assert make_batch(items, features, VECTORS, replace(PARAGRAPH, max_clips=8), True).video_mask.sum(
            1
        ).tolist() == [3, 8]
        fixed = make_batch(items, features, VECTORS, replace(PARAGRAPH, max_clips=8, fixed_length=True), True)
        assert fixed.video_mask.all()
        assert fixed.video.shape[1] == 8

    def test_sentence_without_words(self):
        """It counts as one unknown word, so that no sentence is all padding."""
        item = replace(paragraph(sentences=1), sentences=("...",))
        batch = make_batch([item], [np.ones((2, 3))], VECTORS, BatchNeeds(chars=True), training=False)
        assert batch.words.tolist() == [[[1]]]
        assert batch.chars.tolist() == [[[[1]]]]

    def test_weakly_supervised_training_never_sees_a_span(self):
        marked = replace(paragraph(), annotator_spans=(np.ones((4, 2)), np.ones((4, 2))))
        needs = replace(PARAGRAPH, labelled_share=0)
        training = make_batch([marked], [np.ones((2, 3))], VECTORS, needs, training=True)
        assert training.spans is None
        assert training.labelled is None
        assert all(p.spans is None and p.annotator_spans is None for p in training.paragraphs)
        assert make_batch([marked], [np.ones((2, 3))], VECTORS, needs, training=False).spans is not None

    def test_unknown_spans(self):
        query = replace(paragraph(), spans=None)
        alone = make_batch([query], [np.ones((2, 3))], VECTORS, PARAGRAPH, training=False)
        assert alone.spans is None
        assert alone.labelled is None
        batch = make_batch([query, paragraph()], [np.ones((2, 3))] * 2, VECTORS, PARAGRAPH, training=False)
        assert batch.labelled.dtype == torch.bool
        assert batch.labelled.tolist() == [False, True]
        assert not batch.spans[0].any()
        torch.testing.assert_close(batch.spans[1], torch.tensor([[0.1, 0.2], [0.0, 0.1]]))

    def test_move(self):
        batch = make_batch([paragraph()], [np.ones((2, 3))], VECTORS, PARAGRAPH, training=True).to("cpu")
        assert isinstance(batch, Batch)
        assert batch.chars is None


class TestBucketSampler:
    lengths = np.random.default_rng(0).integers(1, 100, size=203)

    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("size", [1, 7, 203, 500])
    def test_every_item_once(self, shuffle, size):
        sampler = BucketSampler(self.lengths, size, seed=0, shuffle=shuffle)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(203))
        assert max(map(len, batches)) <= size

    def test_in_order_without_shuffling(self):
        assert [i for batch in BucketSampler(self.lengths, 8, seed=0, shuffle=False) for i in batch] == list(range(203))

    def test_order_depends_on_seed_and_epoch_alone(self):
        def order(seed: int, epoch: int) -> list[list[int]]:
            sampler = BucketSampler(self.lengths, 8, seed)
            sampler.epoch = epoch
            return list(sampler)

        assert order(0, 3) == order(0, 3)
        assert order(0, 3) != order(0, 4)
        assert order(0, 3) != order(1, 3)

    def test_batches_hold_similar_lengths(self):
        def spread(batches: list[list[int]]) -> float:
            return float(np.mean([np.ptp(self.lengths[batch]) for batch in batches]))

        bucketed = list(BucketSampler(self.lengths, 8, seed=0))
        shuffled = list(np.array_split(np.random.default_rng(0).permutation(203), 26))
        assert spread(bucketed) < 0.2 * spread(shuffled)

    def test_buckets_do_not_freeze_the_batches(self):
        """Which items meet in a batch changes from epoch to epoch, also for items of one length."""
        sampler = BucketSampler(np.ones(64), 8, seed=0)
        first = {frozenset(b) for b in sampler}
        sampler.epoch = 1
        assert first != {frozenset(b) for b in sampler}

    def test_several_processes_share_the_batches(self):
        whole = list(BucketSampler(self.lengths, 8, seed=0))
        shares = [list(BucketSampler(self.lengths, 8, seed=0, rank=r, world_size=4)) for r in range(4)]
        assert {len(share) for share in shares} == {7}  # 26 batches, two of them twice
        assert [batch for step in zip(*shares, strict=True) for batch in step] == whole + whole[:2]

    def test_nothing_to_sample(self):
        assert list(BucketSampler([], 8, seed=0)) == []


def data(count: int = 30):
    rng = np.random.default_rng(0)
    paragraphs = [paragraph(f"v{i}", 1 + i % 3, duration=float(5 + i), words=1 + i % 5) for i in range(count)]
    return paragraphs, ArrayFeatures({p.video_id: rng.standard_normal((3 + i, 4)) for i, p in enumerate(paragraphs)})


@pytest.mark.parametrize("level", ["sentence", "paragraph"])
def test_evaluation_in_order(level):
    paragraphs, features = data()
    loader = make_loader(paragraphs, features, VECTORS, BatchNeeds(level=level), 4, training=False)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert [p.video_id for b in batches for p in b.paragraphs] == [
        p.video_id for p in prepare(paragraphs, BatchNeeds(level=level), training=False)
    ]
    assert all(b.spans is not None for b in batches)


def test_training_batches_of_an_epoch_are_the_same_again():
    paragraphs, features = data()
    loader = make_loader(paragraphs, features, VECTORS, BatchNeeds(chars=True), 4, training=True, seed=1)
    loader.set_epoch(2)
    first = list(loader)
    resumed = make_loader(paragraphs, features, VECTORS, BatchNeeds(chars=True), 4, training=True, seed=1)
    resumed.set_epoch(2)
    assert all(equal(a, b) for a, b in zip(first, resumed, strict=True))
    resumed.set_epoch(3)
    assert not all(equal(a, b) for a, b in zip(first, resumed, strict=True))
    assert sum(map(len, first)) == sum(len(p.sentences) for p in paragraphs)


def test_workers_change_nothing(small_corpus):
    """Two processes that read the HDF5 file give the batches of this process, also in the second epoch."""

    def loader(workers: int):
        return make_loader(
            small_corpus.splits["train"], small_corpus.features, small_corpus.word_vectors, BatchNeeds(chars=True), 8,
            training=True, seed=0, num_workers=workers,
        )  # fmt: skip

    alone, together = loader(0), loader(2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        together.set_epoch(epoch)
        batches = list(zip(alone, together, strict=True))
        assert len(batches) > 5
        assert all(equal(a, b) for a, b in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_video_without_features_is_named(workers):
    paragraphs, features = data(3)
    del features.arrays["v1"]
    loader = make_loader(paragraphs, features, VECTORS, BatchNeeds(), 4, training=False, num_workers=workers)
    with pytest.raises(FeatureError, match="features of 'v1' are missing"):
        list(loader)


def test_weakly_supervised_loader(small_corpus):
    needs = BatchNeeds(level="paragraph", labelled_share=0)
    for training in (True, False):
        loader = make_loader(
            small_corpus.splits["train"], small_corpus.features, small_corpus.word_vectors, needs, 8, training=training
        )
        for batch in loader:
            assert (batch.spans is None) == training
            assert all((p.spans is None) == training for p in batch.paragraphs)


def test_words_of_another_vocabulary_are_unknown():
    vectors = WordVectors(["<pad>", "<unk>"], np.zeros((2, 3), np.float32), "none")
    batch = make_batch([paragraph(sentences=1)], [np.ones((2, 3))], vectors, BatchNeeds(), training=True)
    assert batch.words.tolist() == [[[1, 1, 1]]]
