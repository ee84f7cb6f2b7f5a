"""Encoding a list of videos into a store; the part of ``extract`` that needs torch."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from tqdm import tqdm

from vpgfast import __version__
from vpgfast.data.feature_files import FeatureStore, Source, VideoFeatures
from vpgfast.encoders.base import Encoder
from vpgfast.encoders.reading import read_all
from vpgfast.encoders.video_clips import VideoClips
from vpgfast.errors import ConfigError, UserError

log = logging.getLogger("vpgfast.extract")


BAR_AFTER, BAR_EVERY, LINE_EVERY = 2.0, 0.5, 60.0
"""Seconds until a bar appears, and between two of its changes; between two lines where there is no terminal."""


@dataclass(frozen=True)
class Job:
    """A video to encode.

    Attributes:
        name: under which its features are stored.
        clips: the video, not read yet.
        source: the file as it was when the run began.
    """

    name: str
    clips: VideoClips
    source: Source


def encode_videos(
    encoder: Encoder,
    store: FeatureStore,
    jobs: Sequence[Job],
    readers: int = 0,
    on_bad: str = "skip",
    at: Callable[[str], None] = lambda name: None,
) -> dict[str, str]:
    """Encode videos and put their features into a store, one by one.

    Args:
        readers: processes that decode; see :func:`vpgfast.encoders.reading.read_all`.
        on_bad: "skip" or "stop" where a video can't be read.
        at: is told the name of each video that begins.

    Returns:
        Why videos failed, by name.

    Raises:
        UserError: the first failure, with ``on_bad="stop"``; what was made before stays.
    """
    rows: dict[int, list[Future[np.ndarray]]] = {}
    failed: dict[str, str] = {}
    with _Progress(jobs) as progress, _Workers(encoder) as workers:
        for number, event in read_all([job.clips for job in jobs], readers):
            job = jobs[number]
            if isinstance(event, np.ndarray):
                if number not in rows:
                    at(job.name)
                rows.setdefault(number, []).append(workers.encode(event))
                progress.alive(job, len(rows[number]))
                continue
            made = [future.result() for future in rows.pop(number, [])]
            if isinstance(event, UserError):
                if on_bad == "stop":
                    raise type(event)(f"{event}. Without --on-bad stop such videos are listed and left out")
                log.warning("left out: %s", event)
                failed[job.name] = str(event)
                progress.done(job, 0.0)
            else:
                found = encoder.encoded(made, event)
                store.add(
                    job.name, VideoFeatures(found.features, found.times, found.duration, found.problems, job.source)
                )
                progress.done(job, found.duration)
    return failed


class _Progress:
    """A bar on a terminal, which moves with every video and shows life within one; elsewhere a line a minute."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.videos, self.total, self.seconds, self.speed = 0, len(jobs), 0.0, 0.0
        size = sum(job.source.size for job in jobs)
        self.bar = tqdm(total=size, desc="encoding", unit="B", unit_scale=True, delay=2, leave=False, disable=None)
        self.bytes, self.left, self.start = 0, size, time.monotonic()
        self.told = self.start + (BAR_AFTER if not self.bar.disable else 0.0)

    def alive(self, job: Job, batches: int) -> None:
        """Another batch of a video has been read."""
        self._tell(f", {job.name}: batch {batches}")

    def done(self, job: Job, seconds: float) -> None:
        """A video of this length has been encoded, or none of it."""
        self.videos, self.seconds = self.videos + 1, self.seconds + seconds
        self.bytes, self.left = self.bytes + job.source.size, self.left - job.source.size
        self.speed = self.seconds / max(time.monotonic() - self.start, 1e-3)  # a video in work would only lower it
        self.bar.update(job.source.size)
        self._tell("")

    def _tell(self, where: str) -> None:
        now = time.monotonic()
        if now - self.told < (LINE_EVERY if self.bar.disable else BAR_EVERY):
            return
        self.told = now
        line = f"{self.videos} of {self.total} videos, {self.speed:.1f} x real time{where}"
        if not self.bar.disable:
            self.bar.set_postfix_str(line)
        elif self.bytes and self.left:
            log.info("%s, about %s left", line, tqdm.format_interval((now - self.start) / self.bytes * self.left))
        else:
            log.info("%s", line)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


class _Workers:
    """Threads that each take a whole batch, one operation of torch on one core.

    A network then gives the same bits for any number of threads and processes; torch's own threads share one operation
    out, and what a sum's last bit is depends on how many they are. It costs up to a fifth (docs/encoders.md). On a GPU
    one thread is enough.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.threads = encoder, torch.get_num_threads()
        self.count = self.threads if encoder.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(self.count)
        self.waiting: deque[Future[np.ndarray]] = deque()

    def encode(self, batch: np.ndarray) -> Future[np.ndarray]:
        """Rows of a batch, later; waits while more than a batch a thread is in work."""
        if len(self.waiting) > self.count:
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self.encoder.encode_batch, batch))
        return self.waiting[-1]

    def __enter__(self) -> _Workers:
        if self.encoder.device.type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads)


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device that ``--device`` names; "auto" is this process's GPU, or the CPU where there is none.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: is not one; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: encoders run on cpu, cuda or cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"--device {name}: torch sees no such GPU here; python -m vpgfast.doctor says why")
    return device


def versions() -> dict[str, str]:
    """Versions of the software that features depend on."""
    found = {"vpgfast": __version__}
    for package in ("torch", "numpy", "av", "torchcodec", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
