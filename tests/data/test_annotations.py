"""Every count of the data sets that could be reproduced from the published files, and files that are not as they
should be."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vpgfast.data.annotations import DATASETS, charades_sta, didemo, load_annotations
from vpgfast.data.batches import prepare
from vpgfast.data.types import BatchNeeds, Paragraph
from vpgfast.errors import AnnotationError, ConfigError


def sentences(paragraphs: list[Paragraph]) -> int:
    return sum(len(p.sentences) for p in paragraphs)


def videos(paragraphs: list[Paragraph]) -> dict[str, float]:
    return {p.video_id: p.duration for p in paragraphs}


def check_valid(paragraphs: list[Paragraph]) -> None:
    for p in paragraphs:
        assert p.spans is not None
        assert p.spans.dtype == np.float64
        assert (p.spans[:, 0] >= 0).all()
        assert (p.spans[:, 0] < p.spans[:, 1]).all()
        assert (p.spans[:, 1] <= p.duration).all()


class TestActivityNet:
    def read(self, shared: Path, split: str, level: str = "paragraph", **options) -> list[Paragraph]:
        return load_annotations("activitynet", split, shared / "activitynet_captions", level, **options)

    @pytest.mark.parametrize(
        ("split", "pairs", "count", "kept", "mean", "duration", "in_order", "long"),
        [
            ("train", 10009, 37421, 10005, 3.739, 117.30, 9764, 267),
            ("val_1", 4917, 17505, 4917, 3.560, 118.23, 4786, 93),
            ("val_2", 4885, 17031, 4885, 3.486, 118.20, 4714, 44),
        ],
    )
    def test_counts(self, shared, split, pairs, count, kept, mean, duration, in_order, long):
        raw = self.read(shared, split, clean=False)
        assert (len(raw), sentences(raw)) == (pairs, count)
        assert sentences(raw) / pairs == pytest.approx(mean, abs=5e-4)
        assert np.mean([p.duration for p in raw]) == pytest.approx(duration, abs=5e-3)
        assert sum(bool((np.diff(p.spans[:, 0]) >= 0).all()) for p in raw) == in_order
        assert sum(len(p.sentences) > 8 for p in raw) == long
        clean = self.read(shared, split)
        assert len(clean) == kept
        check_valid(clean)

    def test_sentence_level_drops_only_the_bad_sentence(self, shared):
        assert len(self.read(shared, "train", "sentence")) == 37421 - 4
        assert len(self.read(shared, "train", bad_span="drop_sentence")) == 10009

    def test_all_videos(self, shared):
        everything = {s: self.read(shared, s, clean=False) for s in ("train", "val_1", "val_2")}
        names = [set(videos(p)) for p in everything.values()]
        assert len(names[0] | names[1] | names[2]) == 14926
        assert len(names[1] & names[2]) == 4885
        pairs = [p for split in everything.values() for p in split]
        assert len(pairs) == 19811
        assert sentences(pairs) / len(pairs) == pytest.approx(3.632, abs=5e-4)
        seconds = {p.video_id: p.duration for p in pairs}
        assert np.mean(list(seconds.values())) == pytest.approx(117.603, abs=5e-3)

    def test_pieces_of_eight(self, shared):
        pieces = prepare(self.read(shared, "val_2"), BatchNeeds(level="paragraph", max_sentences=8), training=False)
        assert (len(pieces), sentences(pieces)) == (4929, 17031)


class TestCharadesSTA:
    def read(self, shared: Path, split: str, level: str = "paragraph", **options) -> list[Paragraph]:
        return load_annotations("charades_sta", split, shared / "charades_sta", level, **options)

    @pytest.mark.parametrize(
        ("split", "raw", "kept", "pairs", "duration", "late"),
        [("train", 12408, 12404, 5338, 30.87, 1805), ("test", 3720, 3720, 1334, 29.48, 562)],
    )
    def test_counts(self, shared, split, raw, kept, pairs, duration, late):
        lines = self.read(shared, split, "sentence", clean=False)
        assert len(lines) == raw
        assert sum(p.spans[0, 1] > p.duration for p in lines) == late
        paragraphs = self.read(shared, split, clean=False)
        assert (len(paragraphs), sentences(paragraphs)) == (pairs, raw)
        assert np.mean([p.duration for p in paragraphs]) == pytest.approx(duration, abs=5e-3)
        for level in ("sentence", "paragraph"):
            clean = self.read(shared, split, level)
            assert sentences(clean) == kept
            check_valid(clean)

    def test_both_splits(self, shared):
        train, test = (self.read(shared, split, clean=False) for split in ("train", "test"))
        assert not set(videos(train)) & set(videos(test))
        seconds = [p.duration for p in train + test]
        assert len(seconds) == 6672
        assert np.mean(seconds) == pytest.approx(30.59, abs=5e-3)
        assert sentences(train + test) / len(seconds) == pytest.approx(2.417, abs=5e-4)

    def test_repair(self, shared):
        fixed = self.read(shared, "train", "sentence", repair=True)
        assert len(fixed) == 12408
        found = {(p.video_id, *p.spans[0]) for p in fixed if p.video_id in ("LEOL6", "IOL8Q", "AKKWU")}
        assert {("LEOL6", 0.0, 2.5), ("IOL8Q", 20.9, 25.8), ("AKKWU", 3.4, 8.8)} <= found
        assert sum((p.video_id, *p.spans[0]) == ("AKKWU", 3.4, 8.8) for p in fixed) == 2
        raw = self.read(shared, "train", "sentence", clean=False)
        changed = [
            (a.video_id, *a.spans[0]) for a, b in zip(raw, fixed, strict=True) if (a.spans[0, 0] >= a.spans[0, 1])
        ]
        assert sorted(changed) == sorted([*charades_sta.REPAIRS, ("AKKWU", 38.0, 13.0)])

    def test_durations_of_json_equal_those_of_csv(self, shared):
        for split in ("train", "test"):
            assert videos(self.read(shared, split, durations="json")) == videos(
                self.read(shared, split, durations="csv")
            )


class TestCharadesCD:
    def read(self, shared: Path, split: str, level: str = "paragraph", **options) -> list[Paragraph]:
        return load_annotations("charades_cd", split, shared / "charades_cd", level, **options)

    @pytest.mark.parametrize(
        ("split", "raw", "kept", "count", "mean"),
        [
            ("train", 4564, 4564, 11071, 2.426),
            ("val", 333, 333, 859, 2.580),
            ("test_iid", 333, 333, 823, 2.471),
            ("test_ood", 1442, 1440, 3375, 2.340),
        ],
    )
    def test_counts(self, shared, split, raw, kept, count, mean):
        everything = self.read(shared, split, clean=False)
        assert (len(everything), sentences(everything)) == (raw, count)
        assert count / raw == pytest.approx(mean, abs=6e-4)
        clean = self.read(shared, split)
        assert len(clean) == kept
        check_valid(clean)
        check_valid(self.read(shared, split, "sentence"))

    def test_the_two_pairs_that_ood_drops(self, shared):
        raw, clean = (videos(self.read(shared, "test_ood", clean=c)) for c in (False, True))
        assert set(raw) - set(clean) == {"LEOL6", "AKKWU"}

    def test_order_in_the_file_is_not_temporal(self, shared):
        train = self.read(shared, "train", clean=False)
        assert sum(bool((np.diff(p.spans[:, 0]) >= 0).all()) for p in train) == 2983

    def test_together_they_are_charades_sta(self, shared):
        splits = {s: self.read(shared, s, clean=False) for s in DATASETS["charades_cd"].SPLITS}
        everything = [p for split in splits.values() for p in split]
        assert (len(videos(everything)), sentences(everything)) == (6672, 16128)
        reported = [*splits["train"], *splits["val"], *splits["test_ood"]]
        assert np.mean([p.duration for p in reported]) == pytest.approx(30.779, abs=5e-3)
        assert sentences(reported) / len(reported) == pytest.approx(2.414, abs=5e-4)


class TestTACoS:
    def read(self, shared: Path, split: str, level: str = "paragraph", **options) -> list[Paragraph]:
        return load_annotations("tacos", split, shared / "tacos", level, **options)

    @pytest.mark.parametrize(
        ("split", "tall", "intervals", "tan2d", "count", "uncut", "mean"),
        [
            ("train", 10146, 1604, 9790, 75, 1263, 7.75),
            ("val", 4589, 964, 4436, 27, 505, 8.78),
            ("test", 4083, 722, 4001, 25, 444, 9.01),
        ],
    )
    def test_counts(self, shared, split, tall, intervals, tan2d, count, uncut, mean):
        lines = self.read(shared, split, "sentence", variant="tall")
        assert len(lines) == tall
        assert len({(p.video_id, *p.spans[0]) for p in lines}) <= intervals
        flat = self.read(shared, split, "sentence")
        assert (len(flat), len(videos(flat))) == (tan2d, count)
        assert videos(lines) == videos(flat)
        paragraphs = self.read(shared, split)
        assert (len(paragraphs), sentences(paragraphs)) == (uncut, tan2d)
        assert tan2d / uncut == pytest.approx(mean, abs=5e-3)
        for read in (lines, flat, paragraphs):
            check_valid(read)

    def test_tall_lines_are_the_intervals(self, shared):
        for split, intervals in (("train", 1604), ("val", 964), ("test", 722)):
            text = (shared / f"tacos/tall/TACoS_{split}_samples.txt").read_text()
            assert len(text.splitlines()) == intervals

    def test_all_videos_and_paragraphs(self, shared):
        everything = [p for split in ("train", "val", "test") for p in self.read(shared, split)]
        assert np.mean(list(videos(everything).values())) / 60 == pytest.approx(4.777, abs=5e-4)
        assert sentences(everything) / len(everything) == pytest.approx(8.24, abs=5e-3)
        assert {len(p.sentences) for p in everything} == set(range(1, 16))

    @pytest.mark.parametrize(
        ("split", "count", "total"), [("train", 1526, 9732), ("val", 688, 4398), ("test", 673, 3989)]
    )
    def test_pieces_equal_the_published_pairs(self, shared, split, count, total):
        def content(paragraphs: list[Paragraph]) -> list[tuple]:
            return sorted(
                (p.video_id, round(p.duration, 6), p.sentences, p.spans.round(6).tolist()) for p in paragraphs
            )

        ours, published = self.read(shared, split, pieces=True), self.read(shared, split, variant="prvg")
        assert (len(ours), sentences(ours)) == (count, total)
        assert content(ours) == content(published)

    def test_tall_has_no_paragraphs(self, shared):
        with pytest.raises(AnnotationError, match="do not tell which sentences form a paragraph"):
            self.read(shared, "val", variant="tall")


class TestDiDeMo:
    @pytest.mark.parametrize(
        ("split", "count", "by_id", "by_file", "seven", "five"),
        [("val", 4180, 1065, 1094, 15, 0), ("test", 4021, 1004, 1037, 11, 1)],
    )
    def test_counts(self, shared, split, count, by_id, by_file, seven, five):
        read = load_annotations("didemo", split, shared / "didemo", "sentence")
        assert (len(read), len(videos(read))) == (count, by_id)
        assert len(videos(load_annotations("didemo", split, shared / "didemo", "sentence", video_id="file"))) == by_file
        annotators = [len(p.annotator_spans[0]) for p in read]
        assert (annotators.count(7), annotators.count(5)) == (seven, five)
        assert annotators.count(4) == count - seven - five
        assert {p.duration for p in read} == {25.0, 30.0}
        check_valid(read)
        grouped = load_annotations("didemo", split, shared / "didemo", "paragraph")
        assert (len(grouped), sentences(grouped)) == (by_id, count)
        assert sum(len(p.annotator_spans) for p in grouped) == count

    def test_train_ids(self, shared):
        ids = didemo.train_video_ids(shared / "didemo")
        assert len(ids) == len(set(ids)) == 8395

    def test_train_file_is_named(self, shared):
        with pytest.raises(AnnotationError, match=r"didemo: no file train_data\.json"):
            load_annotations("didemo", "train", shared / "didemo")

    def test_commonest_interval(self, tmp_path):
        record = {
            "video": "a_1_b.mp4",
            "description": "x",
            "num_segments": 6,
            "times": [[0, 0], [2, 3], [2, 3], [5, 5]],
        }
        (tmp_path / "train_data.json").write_text(json.dumps([record]))
        (read,) = load_annotations("didemo", "train", tmp_path, "sentence")
        assert read.spans.tolist() == [[10.0, 20.0]]
        assert read.annotator_spans[0].tolist() == [[0, 5], [10, 20], [10, 20], [25, 30]]
        assert (read.video_id, read.duration) == ("1", 30.0)


def test_plain_and_gzipped_files_read_alike(shared, tmp_path):
    folder = tmp_path / "cd"
    folder.mkdir()
    with gzip.open(shared / "charades_cd/charades_val.json.gz") as source:
        (folder / "charades_val.json").write_bytes(source.read())
    plain = load_annotations("charades_cd", "val", folder)
    packed = load_annotations("charades_cd", "val", shared / "charades_cd")
    assert [(p.video_id, p.sentences, p.spans.tolist()) for p in plain] == [
        (p.video_id, p.sentences, p.spans.tolist()) for p in packed
    ]


def test_levels_hold_the_same_sentences(shared):
    paragraphs = load_annotations("activitynet", "val_1", shared / "activitynet_captions", "paragraph")
    split = load_annotations("activitynet", "val_1", shared / "activitynet_captions", "sentence")
    assert [(p.video_id, s, *span) for p in paragraphs for s, span in zip(p.sentences, p.spans, strict=True)] == [
        (p.video_id, p.sentences[0], *p.spans[0]) for p in split
    ]


GOOD = {"duration": 10.0, "timestamps": [[0.0, 5.0], [4.0, 12.0]], "sentences": ["a b", "c d"]}


def write_activitynet(folder: Path, change: Callable[[dict], None]) -> Path:
    record = json.loads(json.dumps(GOOD))
    change(record)
    (folder / "train.json").write_text(json.dumps({"v_ok": GOOD, "v_bad": record}))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("duration"), "no 'duration', only"),
        (lambda r: r.update(duration="long"), "'long' is not a number"),
        (lambda r: r.update(duration=0), "a duration of 0"),
        (lambda r: r.update(duration=float("nan")), "nan is not a number"),
        (lambda r: r["sentences"].pop(), "1 sentences and 2 timestamps"),
        (lambda r: r.update(sentences=[], timestamps=[]), "0 sentences and 0 timestamps"),
        (lambda r: r.update(timestamps=[[0, 1], [2]]), r"sentence 2: the timestamp \[2\] is not a pair"),
        (lambda r: r.update(timestamps=[[0, 1], [2, None]]), "sentence 2: None is not a number"),
        (lambda r: r.update(sentences=["a", 5]), "sentence 2: 5 is not text"),
        (lambda r: r.update(timestamps="0 1"), "'timestamps' is str, expected list"),
    ],
)
def test_malformed_record_is_named(tmp_path, change, message):
    with pytest.raises(AnnotationError, match=message) as error:
        load_annotations("activitynet", "train", write_activitynet(tmp_path, change))
    assert f"{tmp_path / 'train.json'}, video 'v_bad'" in str(error.value)
    assert "\n" not in str(error.value)


def test_ends_are_clamped_and_empty_spans_dropped(tmp_path):
    root = write_activitynet(tmp_path, lambda r: r.update(timestamps=[[3.0, 3.0], [-1.0, 4.0]]))
    good, partly = load_annotations("activitynet", "train", root, bad_span="drop_sentence")
    assert good.spans.tolist() == [[0, 5], [4, 10]]
    assert (partly.sentences, partly.spans.tolist()) == (("c d",), [[0, 4]])
    assert [p.video_id for p in load_annotations("activitynet", "train", root)] == ["v_ok"]


def test_malformed_json_names_the_line(tmp_path):
    (tmp_path / "train.json").write_text('{"v_a": {"duration": 1.0},\n "v_b": {"duration" 2}}')
    with pytest.raises(AnnotationError, match=r"train\.json, line 2 column 21: not json"):
        load_annotations("activitynet", "train", tmp_path)


def test_top_level_of_another_kind(tmp_path):
    (tmp_path / "train.json").write_text("[1]")
    with pytest.raises(AnnotationError, match="a list, where a map"):
        load_annotations("activitynet", "train", tmp_path)
    (tmp_path / "val_data.json").write_text("{}")
    with pytest.raises(AnnotationError, match="not a list of descriptions"):
        load_annotations("didemo", "val", tmp_path)


def test_truncated_gzip(shared, tmp_path):
    whole = (shared / "activitynet_captions/val_2.json.gz").read_bytes()
    (tmp_path / "val_2.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AnnotationError, match=r"val_2\.json\.gz: unreadable"):
        load_annotations("activitynet", "val_2", tmp_path)


def test_text_in_another_encoding(tmp_path):
    (tmp_path / "train.json").write_bytes(b'{"v": "\xff"}')
    with pytest.raises(AnnotationError, match="not UTF-8"):
        load_annotations("activitynet", "train", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AO8RW 0.0 6.9 a person", "is not 'VID START END##sentence'"),
        ("AO8RW 0.0##a person", "is not 'VID START END##sentence'"),
        ("AO8RW zero 6.9##a person", "'zero' is not a number"),
        ("NOPE1 0.0 6.9##a person", "video 'NOPE1' has no duration"),
    ],
)
def test_malformed_charades_line_is_named(shared, tmp_path, line, message):
    shutil.copy(shared / "charades_sta/charades.json.gz", tmp_path)
    (tmp_path / "charades_sta_train.txt").write_text(
        f"AO8RW 0.0 6.9##a person is putting a book on a shelf.\n\n{line}\n"
    )
    with pytest.raises(AnnotationError, match=message) as error:
        load_annotations("charades_sta", "train", tmp_path)
    assert "charades_sta_train.txt, line 3" in str(error.value)


def test_charades_csv_without_its_columns(tmp_path):
    (tmp_path / "charades_sta_train.txt").write_text("AO8RW 0.0 6.9##a person\n")
    (tmp_path / "Charades_v1_train.csv").write_text("id,seconds\nAO8RW,3\n")
    with pytest.raises(AnnotationError, match=r"Charades_v1_train\.csv, line 2: no columns 'id' and 'length'"):
        load_annotations("charades_sta", "train", tmp_path)


@pytest.mark.parametrize("line", ["s1-d1.avi_3:a#", "s1-d1.avi_3_9:#", "s9-d9.avi_3_9:a#b#"])
def test_malformed_tall_line_is_named(tmp_path, line):
    video = {"s1-d1.avi": {"timestamps": [[1, 5]], "sentences": ["a"], "fps": 29.4, "num_frames": 100}}
    (tmp_path / "val.json").write_text(json.dumps(video))
    (tmp_path / "TACoS_val_samples.txt").write_text(f"s1-d1.avi_3_9:a#b#\n{line}\n")
    with pytest.raises(AnnotationError, match=r"TACoS_val_samples\.txt, line 2"):
        load_annotations("tacos", "val", tmp_path, "sentence", variant="tall")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [[1, 7]]}, "does not fit 6 segments"),
        ({"times": []}, "no annotator's times"),
        ({"times": [[1, 2, 3]]}, "not a pair of segments"),
        ({"video": "x.mp4"}, "is not 'owner_flickrid_hash.ext'"),
        ({"description": None}, "'description' is NoneType"),
    ],
)
def test_malformed_didemo_entry_is_named(tmp_path, change, message):
    record = {"video": "a_1_b.mp4", "description": "x", "num_segments": 6, "times": [[0, 0]]}
    (tmp_path / "val_data.json").write_text(json.dumps([record, record | change]))
    with pytest.raises(AnnotationError, match=message) as error:
        load_annotations("didemo", "val", tmp_path)
    assert "val_data.json, entry 2" in str(error.value)


def test_wrong_names_are_named(shared, tmp_path):
    with pytest.raises(ConfigError, match="'anet' is not known; choose from activitynet"):
        load_annotations("anet", "train", shared)
    with pytest.raises(AnnotationError, match="no split 'val'; choose from train, val_1, val_2"):
        load_annotations("activitynet", "val", shared / "activitynet_captions")
    with pytest.raises(AnnotationError, match="no such folder"):
        load_annotations("activitynet", "train", tmp_path / "nowhere")
    with pytest.raises(AnnotationError, match=r"no file train\.json \(plain or \.gz\)"):
        load_annotations("activitynet", "train", tmp_path)
    with pytest.raises(AnnotationError, match="level is 'word'"):
        load_annotations("charades_cd", "val", shared / "charades_cd", "word")
