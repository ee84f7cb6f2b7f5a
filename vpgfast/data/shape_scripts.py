"""What happens in a video of moving shapes, and what is said about it; :mod:`vpgfast.data.moving_shapes` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vpgfast.data.options import COLOURS, MovingShapesOptions
from vpgfast.data.types import Paragraph

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}
ACTION_PHRASES = {
    "appear": ("appears", "fades in", "comes into view"),
    "vanish": ("disappears", "fades away", "vanishes"),
    "left": ("moves left", "slides to the left", "drifts towards the left side"),
    "right": ("moves right", "slides to the right", "drifts towards the right side"),
    "up": ("moves up", "rises", "climbs higher"),
    "down": ("moves down", "sinks", "falls lower"),
    "grow": ("grows", "gets bigger", "expands"),
    "shrink": ("shrinks", "gets smaller", "contracts"),
    "blink": ("blinks", "flashes", "flickers"),
    "shake": ("shakes", "trembles", "wobbles"),
}
ACTIONS = tuple(ACTION_PHRASES)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GROWTH = 1.7


@dataclass
class Event:
    """What a shape does, in seconds."""

    action: str
    start: float
    end: float
    amount: tuple[float, float] = (0.0, 0.0)  # how far a move goes


@dataclass
class Shape:
    """A shape before the video starts (places from -1 to 1, x to the right, y down), and all that it does, in time."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float
    visible: bool  # at the start
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True)
class ShapesVideo:
    """The script of one video: what is drawn, and what is said about it.

    Attributes:
        video_id: e.g. ``"test_00007"``.
        duration: seconds.
        sentences: one an event, in the order of the events.
        spans: start and end of each event in seconds.
        shapes: all that is drawn, those that sentences tell of first.
        seed: of its noise.
    """

    video_id: str
    duration: float
    sentences: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    shapes: tuple[Shape, ...]
    seed: tuple[int, int, int]

    @property
    def paragraph(self) -> Paragraph:
        """Its annotation."""
        return Paragraph(self.video_id, self.duration, self.sentences, np.array(self.spans))


def script_distinct(options: MovingShapesOptions, video_id: str, key: tuple[int, int, int]) -> ShapesVideo:
    """A video of which each sentence is true of one moment alone; it depends on nothing but the arguments."""
    rng = np.random.default_rng(key)
    colours = rng.permutation(list(COLOURS)[: options.colours])[: options.shapes + options.distractors]
    cast = [new_shape(rng, str(colour)) for colour in colours]
    described, others = cast[: options.shapes], cast[options.shapes :]

    sentences: list[str] = []
    spans: list[tuple[float, float]] = []
    mentioned: set[str] = set()
    told: set[tuple[str, str]] = set()
    lengths = rng.uniform(
        options.min_event, options.max_event, rng.integers(options.min_events, options.max_events + 1)
    )
    busy = lengths.sum() + options.min_pause * (len(lengths) + 1)
    idle = max(rng.uniform(options.min_duration, options.max_duration) - busy, 0)
    pauses = options.min_pause + idle * rng.dirichlet(np.full(len(lengths) + 1, options.even_pauses))
    time = 0.0
    for pause, length in zip(pauses[:-1], lengths, strict=True):
        time += pause
        choices = [(s, a) for s in described for a in possible(s) if (s.colour, a) not in told]
        # An action first, then a shape, so that no action is rare only because few shapes are fit for it.
        actions = sorted({action for _, action in choices})
        action = actions[rng.integers(len(actions))]
        fit = [shape for shape, a in choices if a == action]
        shape = fit[rng.integers(len(fit))]
        start, time = round(time, 2), round(time + length, 2)
        act(rng, shape, action, start, time)
        told.add((shape.colour, action))
        spans.append((start, time))
        sentences.append(_sentence(rng, options, shape, action, described, mentioned))
    duration = max(round((time + pauses[-1]) * options.fps), 1) / options.fps

    for shape in others:
        when = rng.uniform(0, 2 * options.max_event)
        while when + options.min_event < duration:
            end = min(when + rng.uniform(options.min_event, options.max_event), duration)
            actions = possible(shape)
            act(rng, shape, actions[rng.integers(len(actions))], when, end)
            when = end + options.min_pause + rng.uniform(0, options.max_event)
    # The last event may end with the rounded duration, never after it.
    spans = [(start, min(end, duration)) for start, end in spans]
    return ShapesVideo(video_id, duration, tuple(sentences), tuple(spans), tuple(cast), key)


def new_shape(rng: np.random.Generator, colour: str) -> Shape:
    """A shape of that colour, the rest at random."""
    kinds = list(SHAPE_WORDS)
    x, y = rng.uniform(-0.7, 0.7, size=2)
    return Shape(colour, kinds[rng.integers(len(kinds))], x, y, rng.uniform(0.16, 0.34), bool(rng.random() < 0.6))


def state(shape: Shape) -> tuple[float, float, float, bool]:
    """Where and how large a shape is after its events so far, and whether it is visible."""
    x, y, radius, visible = shape.x, shape.y, shape.radius, shape.visible
    for event in shape.events:
        x, y = x + event.amount[0], y + event.amount[1]
        radius *= {"grow": GROWTH, "shrink": 1 / GROWTH}.get(event.action, 1.0)
        visible = {"appear": True, "vanish": False}.get(event.action, visible)
    return x, y, radius, visible


def possible(shape: Shape) -> list[str]:
    """The actions that a shape can do after its events so far."""
    x, y, radius, visible = state(shape)
    if not visible:
        return ["appear"]
    room = [name for name, (dx, dy) in DIRECTIONS.items() if 0.8 - (x * dx + y * dy) >= 0.5]
    resize = ["grow"] if radius < 0.28 else ["shrink"]
    return ["vanish", "blink", "shake", *room, *resize]


def act(rng: np.random.Generator, shape: Shape, action: str, start: float, end: float) -> None:
    """Let a shape do something that is possible for it."""
    amount = (0.0, 0.0)
    if action in DIRECTIONS:
        x, y, _, _ = state(shape)
        dx, dy = DIRECTIONS[action]
        far = rng.uniform(0.5, min(1.2, 0.8 - (x * dx + y * dy)) + 1e-9)
        amount = (dx * far, dy * far)
    shape.events.append(Event(action, start, end, amount))


def _sentence(
    rng: np.random.Generator,
    options: MovingShapesOptions,
    shape: Shape,
    action: str,
    described: list[Shape],
    mentioned: set[str],
) -> str:
    def word(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))] if options.synonyms else words[0]

    article = "the" if shape.colour in mentioned else "a"
    mentioned.add(shape.colour)
    colour, kind = shape.colour, word(SHAPE_WORDS[shape.kind])
    names = [f"{article} {colour} {kind}"]
    if options.synonyms:
        names.append(f"{article} {kind} that is {colour}")
        if article == "the":
            names.append(f"the {colour} one")
    phrase = word(ACTION_PHRASES[action])
    sentence = f"{names[rng.integers(len(names))]} {phrase}."
    return sentence[0].upper() + sentence[1:]
