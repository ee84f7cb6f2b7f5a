"""Which data a run takes: the settings of :mod:`vpgfast.data.corpus`, apart from the code that reads and makes it.

``--help`` lists them without torch and without a library for files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vpgfast.errors import ConfigError

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
"""Of the shapes of moving_shapes."""


@dataclass(frozen=True)
class MovingShapesOptions:
    """What the corpus looks like; every option is part of the cache's key.

    Attributes:
        train_videos: videos of the training split.
        val_videos: videos of the validation split.
        test_videos: videos of the test split.
        min_events: fewest described events (sentences) of a video.
        max_events: most described events of a video.
        colours: how many of the seven colours are used.
        shapes: described shapes of a video, each of its own colour, as the distractors are.
        distractors: shapes that do things at the same time but are never described.
        min_duration: shortest video in seconds (one whose events take longer is longer).
        max_duration: longest video in seconds.
        min_event: shortest event in seconds.
        max_event: longest event in seconds.
        min_pause: shortest pause before, between and after events, in seconds.
        even_pauses: how alike the pauses of a video are: near 0 one takes almost all the time, at 10
            they are about equal.
        synonyms: describe shapes and actions in varying words; otherwise in one word each.
        noise: standard deviation of the pixel noise in grey levels (of 255).
        jitter: how far all shapes shake together, as if the camera did, in pixels.
        quality: x264's rate factor: 0 keeps everything, 51 is worst.
        size: width and height of the videos in pixels.
        fps: frames a second of the videos.
        clips_per_second: clips a second of the features.
        discourse: tell events that happen more than once, by sentences that are true of several moments each and that
            only their paragraph makes clear ("It does so again."); the described shapes are two then.
        untold: with discourse: how many events of the described shapes no sentence tells.
    """

    train_videos: int = 800
    val_videos: int = 100
    test_videos: int = 150
    min_events: int = 2
    max_events: int = 4
    colours: int = 5
    shapes: int = 2
    distractors: int = 1
    min_duration: float = 14.0
    max_duration: float = 22.0
    min_event: float = 1.2
    max_event: float = 3.0
    min_pause: float = 0.2
    even_pauses: float = 0.5
    synonyms: bool = True
    noise: float = 4.0
    jitter: float = 0.0
    quality: int = 28
    size: int = 64
    fps: int = 8
    clips_per_second: float = 2.0
    discourse: bool = False
    untold: int = 4

    def __post_init__(self) -> None:
        most = self.max_events if self.discourse else 2 * self.shapes
        rules = {
            "shapes": (
                self.shapes == 2 if self.discourse else self.shapes >= 1,
                "2, with discourse" if self.discourse else "at least 1",
            ),
            "untold": (self.untold >= 1, "at least 1"),
            "distractors": (0 <= self.distractors <= self.colours - self.shapes, "0 to colours - shapes"),
            "colours": (1 <= self.colours <= len(COLOURS), f"1 to {len(COLOURS)}"),
            "min_events": (
                self.min_events >= (2 if self.discourse else 1),
                "at least 2, with discourse" if self.discourse else "at least 1",
            ),
            "max_events": (
                self.min_events <= self.max_events <= most,
                "min_events to 2 * shapes, or more with discourse",
            ),
            "max_event": (0 < self.min_event <= self.max_event, "at least min_event, which is above 0"),
            "max_duration": (0 < self.min_duration <= self.max_duration, "at least min_duration, which is above 0"),
            "min_pause": (self.min_pause >= 0, "at least 0"),
            "even_pauses": (self.even_pauses > 0, "above 0"),
            "size": (self.size >= 16 and self.size % 2 == 0, "even and at least 16"),
            "quality": (0 <= self.quality <= 51, "0 to 51"),
            "fps": (self.fps >= 1, "at least 1"),
            "clips_per_second": (self.clips_per_second > 0, "above 0"),
            "train_videos": (
                min(self.train_videos, self.val_videos, self.test_videos) >= 1,
                "at least 1, as val and test",
            ),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ConfigError(f"moving_shapes option {name} is {getattr(self, name)}; it must be {allowed}")


@dataclass(frozen=True)
class SimulatedOptions:
    """How simulated features are made.

    Attributes:
        dim: width of a clip feature.
        clips_per_second: clips a second.
        min_clips: fewest clips of a video.
        max_clips: most clips of a video.
        background: strength of the sentence of somewhere else that clips without any sentence show.
        min_stretch: shortest stretch of one background sentence, in seconds.
        max_stretch: longest stretch of one background sentence, in seconds.
        video_offset: standard deviation of the offset that all clips of a video share.
        clip_noise: standard deviation of the noise of every clip.
        discourse: paragraphs are retold so that what their sentences say happens several times and only the paragraph
            tells which moment is meant; those for which that can't be done are left out (``vpgfast.data.retold``).
    """

    dim: int = 256
    clips_per_second: float = 2.0
    min_clips: int = 8
    max_clips: int = 1024
    background: float = 0.7
    min_stretch: float = 2.0
    max_stretch: float = 8.0
    video_offset: float = 0.5
    clip_noise: float = 1.0
    discourse: bool = False

    def __post_init__(self) -> None:
        rules = {
            "dim": (self.dim >= 1, "at least 1"),
            "clips_per_second": (self.clips_per_second > 0, "above 0"),
            "max_clips": (1 <= self.min_clips <= self.max_clips, "at least min_clips, which is at least 1"),
            "max_stretch": (0 < self.min_stretch <= self.max_stretch, "at least min_stretch, which is above 0"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ConfigError(f"simulated-feature option {name} is {getattr(self, name)}; it must be {allowed}")


@dataclass
class OwnAnnotations:
    """Files of one's own annotations, see :mod:`vpgfast.data.annotations.own`.

    Attributes:
        train: to train on, and to take the other splits from where they have no file.
        val: to validate on; none: a share of train's videos.
        test: to test on; none: a share of train's videos.
    """

    train: Path | None = None
    val: Path | None = None
    test: Path | None = None


@dataclass
class DataConfig:
    """Which corpus, with which features and word vectors.

    Attributes:
        corpus: moving_shapes (made on the spot), own (annotations of your own), activitynet, charades_sta, charades_cd,
            tacos, didemo or qvhighlights.
        annotations: files of a corpus of your own, CSV or TSV with the columns video,start,end,sentence.
        val: of a corpus of your own: share of the videos to validate on, where no file is given for that.
        test: share of the videos to test on, likewise.
        root: folder of the annotation files, or of folders named after the data sets; moving_shapes and own need none.
        features: an HDF5 file, a folder of .npy or .npz files, a list of several that are put side by side, or
            "simulated" (made from the sentences, for trials only); moving_shapes has its own, or "motion", the part of
            them that movement and change alone show.
        features_key: where a video's features are in that file, e.g. "{video_id}/c3d_features"; none: found out.
        features_dim: width that the features must have; none: any.
        on_bad_features: stop, or skip the videos whose features are missing or unfit.
        check_features: before anything else, read the features of all videos (full), or only look whether they are
            there (names).
        word_vectors: GloVe .txt, .txt.gz or .zip, or an .npz with words and vectors; none: hashed vectors.
        word_dim: width of hashed word vectors, and of those to take from a .zip with several.
        train_split: name of the data set's split to train on; none: the usual one.
        val_split: split to validate on, or held_out for a share of the training videos; none: the usual one.
        test_split: split to test on (SeqPAN takes val_1 of ActivityNet, paragraph methods take val_2); none: the usual
            one.
        held_out_share: share of the training videos that held_out takes away from training.
        bad_span: whether an impossible timestamp drops its sentence or its paragraph; none: as the data set's papers
            do.
        charades_repair: put right the four training lines of Charades-STA that end before they start.
        didemo_names: what DiDeMo's features call a video, its Flickr id (flickr) or its file (file, as the published
            feature files).
        tacos_variant: which files of TACoS to read, tan2d, tall or prvg.
        tacos_pieces: cut TACoS paragraphs into pieces of 8 sentences as PRVG does (tan2d files only).
        seed: of everything made or chosen at random here.
        cache: folder for what is made here; none: the environment's VPGFAST_CACHE, else ~/.cache/vpgfast.
        moving_shapes: what the made corpus looks like.
        simulated: how simulated features are made.
    """

    corpus: str = "moving_shapes"
    annotations: OwnAnnotations = field(default_factory=OwnAnnotations)
    val: float = 0.1
    test: float = 0.1
    root: Path | None = None
    features: list[str] | str | None = None
    features_key: str | None = None
    features_dim: int | None = None
    on_bad_features: Literal["stop", "skip"] = "stop"
    check_features: Literal["full", "names"] = "full"
    word_vectors: Path | None = None
    word_dim: int = 300
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    held_out_share: float = 0.1
    bad_span: Literal["drop_sentence", "drop_paragraph"] | None = None
    charades_repair: bool = False
    didemo_names: Literal["flickr", "file"] = "flickr"
    tacos_variant: Literal["tan2d", "tall", "prvg"] = "tan2d"
    tacos_pieces: bool = False
    seed: int = 0
    cache: Path | None = None
    moving_shapes: MovingShapesOptions = field(default_factory=MovingShapesOptions)
    simulated: SimulatedOptions = field(default_factory=SimulatedOptions)
