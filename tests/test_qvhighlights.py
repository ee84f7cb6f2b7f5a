"""QVHighlights' evaluation against a plain restatement of its rules, and what is said of files that break them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vpgfast import evaluate
from vpgfast.data.annotations import qvhighlights
from vpgfast.data.submissions import Answer, read_submission, write_submission
from vpgfast.errors import AnnotationError
from vpgfast.evaluate.submission import clip_scores
from vpgfast.metrics.qvhighlights import score_submission

Record = dict[str, Any]
COUNTS = {"train": 7218, "val": 1550, "test": 1542}


def make_truth(rng: random.Random, count: int) -> list[Record]:
    truth = []
    for qid in range(count):
        edges = sorted(rng.sample(range(76), 2 * rng.choice([1, 1, 2, 3])))
        windows = [[2 * a, 2 * b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        clips = [clip for a, b in windows for clip in range(a // 2, b // 2)]
        ratings = [[rng.randint(0, 4) for _ in range(3)] for _ in clips]
        truth.append(
            {"qid": qid, "query": "It runs.", "vid": f"v{qid // 2}", "duration": 150, "relevant_windows": windows}
            | {"relevant_clip_ids": clips, "saliency_scores": ratings}
        )
    return truth


def make_answers(rng: random.Random, truth: list[Record]) -> list[Record]:
    """Some near the truth, with ties of scores and more windows than count; scores of too few or too many clips."""
    answers = []
    for query in truth:
        windows = []
        for _ in range(rng.choice([1, 3, 10, 13])):
            start, end = rng.choice(query["relevant_windows"])
            if rng.random() < 0.5:
                start, end = (
                    max(0.0, start + rng.choice([0, 2, -2, rng.uniform(-5, 5)])),
                    end + rng.choice([0, 0, 2, 4]),
                )
            else:
                start, end = sorted([rng.uniform(0, 150), rng.uniform(0, 150)])
            windows.append([start, end, rng.choice([0.5, 0.7, rng.random()])])
        saliency = [rng.choice([0.0, 1.0, rng.gauss(0, 1)]) for _ in range(rng.choice([75, 75, 70, 80]))]
        answers.append({"qid": query["qid"], "pred_relevant_windows": windows, "pred_saliency_scores": saliency})
    rng.shuffle(answers)
    return answers


def iou(a: list[float], b: list[float]) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inter / (a[1] - a[0] + b[1] - b[0] - inter)


def plain_ap(windows: list[list[float]], truth: list[list[float]], threshold: float) -> float:
    """The ranking walked down; the area under the interpolated precision-recall curve, point by point."""
    free, hits = list(truth), []
    for window in sorted(windows[:10], key=lambda w: -w[2]):
        best = max(free, key=lambda w: iou(window, w), default=None)
        hits.append(best is not None and iou(window, best) >= threshold)
        if hits[-1]:
            free.remove(best)
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) for k, hit in enumerate(hits) if hit) / len(truth)


def plain_highlight_ap(good: list[bool], scores: list[float]) -> float:
    if all(good) or not any(good):
        return float(all(good))
    scores = (scores + [0.0] * len(good))[: len(good)]
    points = []
    for level in sorted(set(scores), reverse=True):
        found = [g for g, s in zip(good, scores, strict=True) if s >= level]
        points.append((sum(found), sum(found) / len(found)))
    gains = [k for k, (found, _) in enumerate(points) if found > (points[k - 1][0] if k else 0)]
    return float(np.mean([max(p for _, p in points[k:]) for k in gains]))


def plain_scores(answers: list[Record], truth: list[Record]) -> dict[str, float]:
    """All figures of ``brief``, in per cent, not rounded."""
    by_qid = {answer["qid"]: answer for answer in answers}
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    brief = {}
    for name, low, high in (("short", 0, 10), ("middle", 10, 30), ("long", 30, 150), ("full", 0, 150)):
        rows = []
        for query in truth:
            inside = [w for w in query["relevant_windows"] if low < w[1] - w[0] <= high]
            if inside:
                windows = by_qid[query["qid"]]["pred_relevant_windows"]
                rows.append([plain_ap(windows, inside, round(t, 2)) for t in thresholds])
        brief[f"MR-{name}-mAP"] = np.mean(rows) if rows else np.nan
        if name == "full":
            brief["MR-full-mAP@0.5"], brief["MR-full-mAP@0.75"] = np.mean(rows, axis=0)[[0, 5]]
    for threshold in (0.5, 0.7):
        best = [max(iou(by_qid[q["qid"]]["pred_relevant_windows"][0], w) for w in q["relevant_windows"]) for q in truth]
        brief[f"MR-full-R1@{threshold}"] = np.mean([one >= threshold for one in best])
    for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        hits, precisions = [], []
        for query in truth:
            ratings = dict(zip(query["relevant_clip_ids"], query["saliency_scores"], strict=True))
            rows = [ratings.get(clip, [0, 0, 0]) for clip in range(75)]
            scores = by_qid[query["qid"]]["pred_saliency_scores"]
            best = scores.index(max(scores))
            hits.append(best < 75 and max(rows[best]) >= least)
            precisions += [plain_highlight_ap([row[rater] >= least for row in rows], scores) for rater in range(3)]
        brief[f"HL-min-{name}-Hit1"], brief[f"HL-min-{name}-mAP"] = np.mean(hits), np.mean(precisions)
    return {name: 100 * float(value) for name, value in brief.items()}


def write_lines(path: Path, records: list[Record]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))  # no last line break, as the authors' files
    return path


@pytest.mark.parametrize("seed", range(5))
def test_as_restated(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    truth = make_truth(rng, rng.choice([5, 60]))
    answers = make_answers(rng, truth)
    truth_file, file = write_lines(tmp_path / "truth.jsonl", truth), write_lines(tmp_path / "answers.jsonl", answers)
    queries = qvhighlights.read(truth_file)
    found = score_submission(read_submission(file, queries, truth_file), queries)["brief"]
    expected = plain_scores(answers, truth)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] is None if np.isnan(value) else found[name] == pytest.approx(value, abs=0.00501), name


def test_by_hand() -> None:
    query = qvhighlights.Query(1, "It runs.", "v", 150.0, np.array([[0.0, 10], [20, 60]]), None)
    windows = np.array([[0, 8, 0.9], [21, 60, 0.8], [0, 10, 0.7], [100, 120, 0.6]])
    found = score_submission([Answer(windows, None)], [query])
    assert found["brief"]["MR-full-R1@0.7"] == 100, "0 to 8 has IoU 0.8 with 0 to 10"
    assert found["full"]["MR-mAP"]["0.75"] == 100
    # At 0.85 the first is wrong, the second and third are right: precision 1/2, then 2/3 at half the recall each.
    assert found["full"]["MR-mAP"]["0.85"] == pytest.approx(66.67)
    assert found["short"]["MR-mAP"]["0.95"] == pytest.approx(33.33), "only the moment of 10 s counts, third in the list"
    assert found["middle"]["MR-mAP"]["average"] is None, "no moment is that long"
    assert not any(name.startswith("HL") for name in found)


def test_nothing_predicted_is_missed() -> None:
    query = qvhighlights.Query(1, "It runs.", "v", 150.0, np.array([[0.0, 10]]), None)
    brief = score_submission([Answer(np.empty((0, 3)), None)], [query])["brief"]
    assert brief["MR-full-R1@0.5"] == brief["MR-full-mAP"] == 0


@pytest.mark.parametrize("split", COUNTS)
def test_published_files(shared: Path, split: str) -> None:
    paragraphs = qvhighlights.load(split, shared / "qvhighlights")
    assert len(paragraphs) == COUNTS[split]
    assert all(p.all_spans is not None and len(p.all_spans[0]) >= 1 for p in paragraphs)
    assert max(len(p.true_spans[0]) for p in paragraphs if p.true_spans) > 5
    joined = qvhighlights.load(split, shared / "qvhighlights", "paragraph")
    assert sum(len(p.sentences) for p in joined) == COUNTS[split]
    assert len({p.video_id for p in joined}) == len(joined) < COUNTS[split]
    assert sum(len(p.query_ids or ()) for p in joined) == COUNTS[split]


def test_the_truth_scores_full_marks(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command, on the real file, from an answer that was written by us."""
    truth = shared / "qvhighlights" / "highlight_val_release.jsonl.gz"
    queries = qvhighlights.read(truth)
    answers = []
    for query in queries:
        assert query.saliency is not None
        scores = np.ones((len(query.windows), 1))
        answers.append(Answer(np.hstack([query.windows, scores]), query.saliency.max(axis=1)))
    names = [(query.qid, query.sentence, query.video) for query in queries]
    write_submission(tmp_path / "s.jsonl", names, answers)
    assert evaluate.main(["--submission", str(tmp_path / "s.jsonl"), "--truth", str(truth)]) == 0
    out = capsys.readouterr().out
    assert "s.jsonl: 1550 queries" in out
    assert "MR-full-mAP" in out
    found = json.loads((tmp_path / "s_metrics.json").read_text())
    assert found["brief"]["MR-full-R1@0.7"] == 100
    assert 95 < found["brief"]["MR-full-mAP"] < 100, "some queries have more than ten moments, and ten answers count"
    assert found["brief"]["HL-min-VeryGood-Hit1"] > 90


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"qid": 7}, "line 1: qid 7 is not in"),
        ({"qid": None}, "line 1: qid None is not in"),
        ({"qid": 1}, "qid 1 was there before"),
        ({"pred_relevant_windows": [[1, 2]]}, "line 1: the predicted window [1, 2] is not [start, end, score]"),
        ({"pred_relevant_windows": [[1, 2, float("nan")]]}, "is not a number"),
        ({"pred_relevant_windows": "x"}, "'pred_relevant_windows' is str, expected list"),
        ({"pred_saliency_scores": []}, "'pred_saliency_scores' holds none"),
        ({"pred_saliency_scores": ["x"]}, "'x' is not a number"),
        ({"pred_saliency_scores": None}, "is NoneType, expected list"),
    ],
)
def test_bad_submissions(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Record, expected: str) -> None:
    truth = make_truth(random.Random(0), 3)
    answers = sorted(make_answers(random.Random(0), truth), key=lambda answer: answer["qid"])
    answers[0] |= change
    truth_file, file = write_lines(tmp_path / "t.jsonl", truth), write_lines(tmp_path / "s.jsonl", answers)
    assert evaluate.main(["--submission", str(file), "--truth", str(truth_file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}")
    assert expected in error


def test_answers_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = make_truth(random.Random(0), 4)
    truth_file = write_lines(tmp_path / "t.jsonl", truth)
    answers = make_answers(random.Random(0), truth)
    file = write_lines(tmp_path / "s.jsonl", [answer for answer in answers if answer["qid"] > 1])
    assert evaluate.main(["--submission", str(file), "--truth", str(truth_file)]) == 2
    assert "2 of 4 queries of" in (error := capsys.readouterr().err)
    assert "have no answer (first: qid 0)" in error
    del answers[0]["pred_saliency_scores"]
    write_lines(file, answers)
    assert evaluate.main(["--submission", str(file), "--truth", str(truth_file)]) == 2
    assert "1 of 4 answers have no 'pred_saliency_scores'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"relevant_windows": []}, "line 1: 'relevant_windows' holds none"),
        ({"relevant_windows": [[4, 2]]}, "the window [4, 2] does not start before it ends"),
        ({"relevant_windows": [[4, 152]]}, "ends at 152 s, after its video of 150 s"),
        ({"relevant_clip_ids": [75]}, "1 relevant_clip_ids and"),
        ({"relevant_clip_ids": [75], "saliency_scores": [[1, 2, 3]]}, "relevant clip 75, the video has 75 of 2 s"),
        ({"relevant_clip_ids": [0], "saliency_scores": [[1, 2]]}, "the ratings [1, 2] of clip 0 are not 3 numbers"),
        ({"duration": 0}, "a duration of 0"),
        ({"qid": True}, "'qid' is True"),
        ({"qid": 1}, "line 2: qid 1 was there before"),
    ],
)
def test_bad_truth(tmp_path: Path, change: Record, expected: str) -> None:
    truth = make_truth(random.Random(0), 2)
    truth[0] |= change
    with pytest.raises(AnnotationError) as caught:
        qvhighlights.read(write_lines(tmp_path / "t.jsonl", truth))
    assert expected in str(caught.value)


def test_files_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in {
        ("--truth", "a"): "--submission is missing",
        ("--submission", "a"): "--truth is missing",
        ("run", "--submission", "a", "--truth", "b"): "run: --submission is scored by its file alone",
        ("--submission", "a", "--truth", "b", "--top_n=3"): "--top_n=3: --submission is scored by its file alone",
    }.items():
        assert evaluate.main(list(arguments)) == 2
        assert expected in capsys.readouterr().err


def test_scores_of_clips() -> None:
    assert clip_scores(np.array([1.0, 2, 3]), 6.0).tolist() == [1, 2, 3]
    assert clip_scores(np.array([1.0, 3.0]), 8.0).tolist() == [1, 1, 3, 3]
    assert clip_scores(np.array([1.0, 3, 5, 7]), 4.0) == pytest.approx([2, 6])
    assert clip_scores(np.array([2.0]), 1.0).tolist() == [2], "a video shorter than a clip has one"
