"""Videos of moving shapes whose sentences say little by themselves: only the paragraph tells which moment is meant.

Two shapes, with others beside them that no sentence tells of, do a few things again and again. Some of it is told, in
order: "A red circle blinks. It moves left. The other one does so, too. It does so again." Read by itself, each
sentence is true of several moments; read as a paragraph, each of one.

What a sentence says is a :class:`Statement`. The same statements are put into words here, read from words
(:func:`read`), and held against what happens (:func:`true_alone`, :func:`shares_in_order`).

Letters: M sentences, E events of a video (of all its shapes) in the order of their starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vpgfast.data.options import COLOURS, MovingShapesOptions
from vpgfast.data.shape_scripts import ACTION_PHRASES, SHAPE_WORDS, Shape, ShapesVideo, act, new_shape, possible
from vpgfast.data.types import Paragraph
from vpgfast.errors import ConfigError

_ACTIONS = (("left", "right"), ("up", "down"), ("grow", "shrink"), ("blink",), ("shake",))
"""A shape can go on doing these for ever: a move or a growth can be taken back."""
_KINDS_OF_ACTIONS = 2  # a video
_NAMED_AGAIN = 0.15  # share of later mentions of a shape by its name
_REPEATED = ("does so", "does the same")
_ATTEMPTS = 5000


@dataclass(frozen=True)
class Statement:
    """What a sentence says.

    Attributes:
        colour: of the shape that does it, where it is named; otherwise "it" or "the other one".
        other: "the other one".
        action: what it does; ``None``: "does so".
        again: that shape has done it before.
        too: another shape has done it before.
    """

    colour: str | None = None
    other: bool = False
    action: str | None = None
    again: bool = False
    too: bool = False


class Happening(NamedTuple):
    """An event of a video, told or not, in seconds."""

    colour: str
    action: str
    start: float
    end: float


@dataclass(frozen=True)
class Telling:
    """A paragraph and its video.

    Attributes:
        paragraph: M sentences, with the spans that are meant.
        statements: what the sentences say.
        events: all E events of the video, told or not, in the order of their starts.
    """

    paragraph: Paragraph
    statements: tuple[Statement, ...]
    events: tuple[Happening, ...]


def telling(video: ShapesVideo) -> Telling:
    """What a video shows, and its sentences say."""
    return Telling(video.paragraph, tuple(map(read, video.sentences)), tuple(happenings(video)))


def happenings(video: ShapesVideo) -> list[Happening]:
    """All E events of a video, in the order of their starts."""
    events = [Happening(s.colour, e.action, e.start, e.end) for s in video.shapes for e in s.events]
    return sorted(events, key=lambda event: event.start)


# --- reading


def read(sentence: str) -> Statement:
    """What a sentence of this corpus says.

    Raises:
        ValueError: it is none.
    """
    text = sentence.lower()
    named = [colour for colour in COLOURS if re.search(rf"\b{colour}\b", text)]
    actions = [action for action, phrases in ACTION_PHRASES.items() if any(phrase in text for phrase in phrases)]
    repeats, other = any(phrase in text for phrase in _REPEATED), "the other one" in text
    if len(named) > 1 or len(actions) + repeats != 1 or not (named or other or re.search(r"\bit\b", text)):
        raise ValueError(f"no sentence of this corpus: {sentence!r}")
    return Statement(
        named[0] if named else None, other, actions[0] if actions else None, " again" in text, ", too" in text
    )


def true_alone(statement: Statement, events: Sequence[Happening]) -> np.ndarray:
    """Of which events a statement is true when it is read by itself, bool [E]."""

    def holds(event: Happening) -> bool:
        before = [e for e in events if e.start < event.start and e.action == event.action]
        return (
            statement.colour in (None, event.colour)
            and statement.action in (None, event.action)
            and (not statement.again or any(e.colour == event.colour for e in before))
            and (not statement.too or any(e.colour != event.colour for e in before))
        )

    return np.array([holds(event) for event in events])


def resolve(statements: Sequence[Statement]) -> list[tuple[str, str]]:
    """Who does what in each statement of a paragraph, (colour, action): what "it", "the other one" and "so" stand for.

    Raises:
        ValueError: the paragraph does not say.
    """
    told: list[tuple[str, str]] = []
    for statement in statements:
        mentioned = list(dict.fromkeys(colour for colour, _ in told))
        colour, action = statement.colour, statement.action
        if colour is None and statement.other and len(mentioned) == 2:
            colour = next(one for one in mentioned if one != told[-1][0])
        elif colour is None and not statement.other and told:
            colour = told[-1][0]
        if action is None and told:
            action = told[-1][1]
        if colour is None or action is None:
            raise ValueError(f"sentence {len(told) + 1} refers to what was not said before")
        told.append((colour, action))
    return told


def true_together(statements: Sequence[Statement], events: Sequence[Happening]) -> np.ndarray:
    """Of which events each statement can be true when the paragraph is read, but for the order, bool [M, E]."""
    return np.array([[(e.colour, e.action) == who for e in events] for who in resolve(statements)])


def shares_in_order(true: np.ndarray) -> np.ndarray:
    """Of all ways to give each sentence a true event, each a later one than the sentence before: the share of them in
    which sentence m has event e.

    Args:
        true: bool [M, E].

    Returns:
        float64 [M, E], rows sum to 1; all of it is zero if there is no way.
    """
    ways_before, ways_after = _ways(true), _ways(true[::-1, ::-1])[::-1, ::-1]
    total = ways_before[-1].sum()
    return ways_before * ways_after / max(total, 1)


def ways_in_order(true: np.ndarray) -> int:
    """How many ways there are, see :func:`shares_in_order`."""
    return int(_ways(true)[-1].sum())


def _ways(true: np.ndarray) -> np.ndarray:
    """Ways to give events to sentences up to m, sentence m having event e, float64 [M, E] (exact up to 2^53)."""
    ways = true.astype(np.float64)
    for m in range(1, len(ways)):
        ways[m, 1:] *= ways[m - 1].cumsum()[:-1]
        ways[m, 0] = 0
    return ways


# --- writing


def script_discourse(options: MovingShapesOptions, video_id: str, key: tuple[int, int, int]) -> ShapesVideo:
    """A video whose paragraph is true of one choice of moments, and each of its sentences by itself of several; it
    depends on nothing but the arguments.

    Raises:
        ConfigError: the options leave no room for such a video.
    """
    rng = np.random.default_rng(key)
    for _ in range(_ATTEMPTS):
        video, statements = _draw(rng, options, video_id, key)
        events = happenings(video)
        if all(true_alone(statement, events).sum() > 1 for statement in statements) and (
            ways_in_order(true_together(statements, events)) == 1
        ):
            return video
    raise ConfigError(
        f"moving_shapes option discourse: {options.min_events} to {options.max_events} told events beside "
        f"{options.untold} untold ones and {options.distractors} distractors leave no paragraph of which each sentence "
        "is true of several moments and the whole of one; give more untold events or distractors"
    )


def _draw(
    rng: np.random.Generator, options: MovingShapesOptions, video_id: str, key: tuple[int, int, int]
) -> tuple[ShapesVideo, list[Statement]]:
    """A video, and what is said of it: it may be ambiguous."""
    colours = rng.permutation(COLOURS[: options.colours])[: options.shapes + options.distractors]
    cast = [new_shape(rng, str(colour)) for colour in colours]
    for shape in cast:
        shape.visible = True
    described, others = cast[: options.shapes], cast[options.shapes :]
    kinds = rng.permutation(len(_ACTIONS))[:_KINDS_OF_ACTIONS]
    actions = [action for kind in kinds for action in _ACTIONS[kind]]

    count = int(rng.integers(options.min_events, options.max_events + 1))
    lengths = rng.uniform(options.min_event, options.max_event, count + options.untold)
    busy = lengths.sum() + options.min_pause * (len(lengths) + 1)
    idle = max(rng.uniform(options.min_duration, options.max_duration) - busy, 0)
    pauses = options.min_pause + idle * rng.dirichlet(np.full(len(lengths) + 1, options.even_pauses))
    told = set(rng.permutation(len(lengths))[:count].tolist())
    statements: list[Statement] = []
    sentences, spans, time = [], [], 0.0
    for number, (pause, length) in enumerate(zip(pauses[:-1], lengths, strict=True)):
        start = round(time + pause, 2)
        time = round(start + length, 2)
        shape = described[rng.integers(len(described))]
        action = _do(rng, shape, actions, start, time)
        if number in told:
            before = resolve(statements)
            statements.append(_statement(rng, before, shape.colour, action))
            sentences.append(_in_words(rng, options, statements[-1], shape, shape.colour in {c for c, _ in before}))
            spans.append((start, time))
    duration = max(round((time + pauses[-1]) * options.fps), 1) / options.fps

    for shape in others:
        when = rng.uniform(0, 2 * options.max_event)
        while when + options.min_event < duration:
            end = min(when + rng.uniform(options.min_event, options.max_event), duration)
            _do(rng, shape, actions, when, end)
            when = end + options.min_pause + rng.uniform(0, options.max_event)
    spans = [(start, min(end, duration)) for start, end in spans]
    return ShapesVideo(video_id, duration, tuple(sentences), tuple(spans), tuple(cast), key), statements


def _do(rng: np.random.Generator, shape: Shape, actions: Sequence[str], start: float, end: float) -> str:
    choices = [action for action in possible(shape) if action in actions]
    action = choices[rng.integers(len(choices))]
    act(rng, shape, action, start, end)
    return action


def _statement(rng: np.random.Generator, before: Sequence[tuple[str, str]], colour: str, action: str) -> Statement:
    """That a shape does something, after what was told ``before``, with as few names as one would use."""
    mentioned = {who for who, _ in before}
    again = (colour, action) in before
    if colour not in mentioned or rng.random() < _NAMED_AGAIN:
        return Statement(colour, action=action, again=again)
    last_colour, last_action = before[-1]
    other, same = colour != last_colour, action == last_action
    if same and not other and rng.random() < 0.7:
        return Statement(again=True)
    if same and other and not again and rng.random() < 0.7:
        return Statement(other=True, too=True)
    return Statement(other=other, action=action, again=again)


def _in_words(
    rng: np.random.Generator, options: MovingShapesOptions, statement: Statement, shape: Shape, mentioned: bool
) -> str:
    def word(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))] if options.synonyms else words[0]

    if statement.colour is not None:
        who = f"{'the' if mentioned else 'a'} {statement.colour} {word(SHAPE_WORDS[shape.kind])}"
    else:
        who = "the other one" if statement.other else "it"
    what = word(_REPEATED if statement.action is None else ACTION_PHRASES[statement.action])
    sentence = f"{word(('', 'then ')) if mentioned else ''}{who} {what}"
    sentence += (" again" if statement.again else "") + (", too" if statement.too else "") + "."
    return sentence[0].upper() + sentence[1:]
