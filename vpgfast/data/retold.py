"""Real paragraphs, retold so that only the paragraph tells which moment is meant: `discourse` for simulated features.

What a sentence tells of happens once or twice more in its video, where nobody tells of it; of some sentences nothing
is left but that it happens again; and something else that nobody tells of happens twice. "A person opens a door. A
person sits down." may become "A person opens a door. The person does it again.". There must be room for that: time is
put into the video wherever no moment is under way.

Text and lengths of moments are the annotation's, but for the sentences that become "again". Sentences are in the order
of their moments' starts. What is said, and what it is true of, is :mod:`vpgfast.data.discourse`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from vpgfast.data.discourse import Happening, Statement, Telling, true_alone, ways_in_order
from vpgfast.data.simulated import generator_of
from vpgfast.data.types import Paragraph
from vpgfast.errors import ConfigError

_AGAIN = ("The person does it again.", "Then the same thing again.", "It is the same once more.")
_TOLD_AGAIN = 0.5  # share of the sentences of which no more is left, among those behind the moment before
_HAPPENS = "happens"  # the one action of these statements: what it is that happens is the sentence itself
_PAUSE = 1.0  # seconds between two times of the same: less would be one moment
_PUT_IN = (1, 2)  # time that is put into a video, as a multiple of its duration
_ATTEMPTS = 10  # at a paragraph, and at the place of what is not told


def shown(told: Telling) -> Paragraph:
    """Everything that happens in a video, each with all of its moments, as if it were told."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in told.events:
        spans.setdefault(event.colour, []).append((event.start, event.end))
    moments = tuple(np.array(times) for times in spans.values())
    first = np.stack([times[0] for times in moments])
    return Paragraph(told.paragraph.video_id, told.paragraph.duration, tuple(spans), first, all_spans=moments)


def retell_splits(splits: Mapping[str, Sequence[Paragraph]], seed: int) -> dict[str, list[Telling]]:
    """All paragraphs that can be retold, by split.

    Raises:
        ConfigError: a video has several paragraphs, whose untold moments would be told by each other; or of a split
            none can be retold.
    """
    paragraphs = [paragraph for split in splits.values() for paragraph in split]
    times = Counter(paragraph.video_id for paragraph in paragraphs)
    if several := next((video for video, count in times.items() if count > 1), None):
        raise ConfigError(
            f"data.simulated.discourse wants one paragraph a video; video {several!r} has {times[several]}. Choose "
            "splits that share no video (data.val_split: held_out), and a corpus whose paragraphs are whole videos"
        )
    elsewhere = [sentence for paragraph in paragraphs for sentence in paragraph.sentences]
    named = [(name, paragraph) for name, split in splits.items() for paragraph in split]
    retold: dict[str, list[Telling]] = {name: [] for name in splits}
    for name, paragraph in tqdm(named, desc="retelling", unit="paragraph", delay=2, leave=False, disable=None):
        if (told := retell(paragraph, elsewhere, seed)) is not None:
            retold[name].append(told)
    for name, tellings in retold.items():
        if not tellings:
            raise ConfigError(
                f"data.simulated.discourse: none of the {len(splits[name])} paragraphs of the {name} split can be "
                "retold; they must have several sentences each"
            )
    return retold


def retell(paragraph: Paragraph, elsewhere: Sequence[str], seed: int) -> Telling | None:
    """A paragraph of whose sentences each is true of several moments, and all together, in order, of their own alone.

    It depends on nothing but the arguments. None where no such retelling is found, as of one sentence.

    Args:
        paragraph: spans known.
        elsewhere: sentences of which one happens twice without being told.
        seed: of everything random.
    """
    if paragraph.spans is None or len(paragraph.spans) < 2:
        return None
    rng = generator_of("retold", seed, paragraph.video_id)  # not that of the video's features
    paragraph = paragraph.by_time()
    for _ in range(_ATTEMPTS):
        retold = _draw(rng, paragraph, elsewhere)
        if retold is not None and all(true_alone(s, retold.events).sum() > 1 for s in retold.statements):
            return retold
    return None


def _draw(rng: np.random.Generator, paragraph: Paragraph, elsewhere: Sequence[str]) -> Telling | None:
    """A retelling that is true of one choice of moments; each of its sentences may be, too."""
    duration, spans = _prolonged(rng, paragraph)
    texts: list[str] = []
    statements: list[Statement] = []
    said: list[str] = []  # what each sentence tells of
    events: list[Happening] = []
    for sentence, (start, end) in zip(paragraph.sentences, spans.tolist(), strict=True):
        again = bool(said) and rng.random() < _TOLD_AGAIN and not _too_close(said[-1], start, end, events)
        texts.append(_AGAIN[int(rng.integers(len(_AGAIN)))] if again else sentence)
        statements.append(Statement(None if again else sentence, action=_HAPPENS, again=again))
        said.append(said[-1] if again else sentence)
        if _too_close(said[-1], start, end, events):
            return None
        events.append(Happening(said[-1], _HAPPENS, start, end))
    other = elsewhere[int(rng.integers(len(elsewhere)))]
    told_once = [what for what in dict.fromkeys(said) if said.count(what) == 1]
    for what in rng.permutation([*told_once, other, other]).tolist():
        if (more := _with_untold(rng, what, duration, spans, events, said)) is None:
            return None
        events = more
    for what in told_once:  # a third time, where there is room
        events = _with_untold(rng, what, duration, spans, events, said) or events
    return Telling(Paragraph(paragraph.video_id, duration, tuple(texts), spans), tuple(statements), tuple(events))


def _with_untold(
    rng: np.random.Generator, what: str, duration: float, spans: np.ndarray, events: list[Happening], said: list[str]
) -> list[Happening] | None:
    """The events with one more, of which nobody tells: what is ``said``, in order, is still true of one choice alone.
    None where no place is found."""
    for _ in range(_ATTEMPTS):
        length = float(np.diff(spans[rng.integers(len(spans))])[0])  # as long as what is told
        start = float(rng.uniform(0, duration - length))
        if not _too_close(what, start, start + length, events):
            one = Happening(what, _HAPPENS, start, start + length)
            more = sorted([*events, one], key=lambda event: (event.start, event.end))
            if ways_in_order(np.array([[event.colour == told for event in more] for told in said])) == 1:
                return more
    return None


def _too_close(what: str, start: float, end: float, events: Sequence[Happening]) -> bool:
    """Whether the same happens at that time or just before or after it."""
    return any(e.colour == what and e.start < end + _PAUSE and start < e.end + _PAUSE for e in events)


def _prolonged(rng: np.random.Generator, paragraph: Paragraph) -> tuple[float, np.ndarray]:
    """Duration and spans when time is put in wherever no moment is under way."""
    assert paragraph.spans is not None
    starts, ends = paragraph.spans.T
    cuts = np.array([0.0, *(t for t in ends.tolist() if not ((starts < t) & (t < ends)).any())])
    put_in = rng.uniform(*_PUT_IN) * paragraph.duration * rng.dirichlet(np.ones(len(cuts)))
    before = put_in @ (cuts[:, None] <= starts)  # a moment that starts at a cut is behind it
    return paragraph.duration + float(put_in.sum()), paragraph.spans + before[:, None]
