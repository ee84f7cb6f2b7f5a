"""Windows whose frames are spread by the file's own rate, which HERO's extractor does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vpgfast.encoders.video_clips import VideoClips
from vpgfast.video import Video


@dataclass
class RateClips(VideoClips):
    """As :class:`VideoClips`, with ``sampling.span`` set by the rate of the file.

    The frames of a window that are looked at are spread over ``2 * frames * rate / fps`` of them, where ``rate`` is the
    file's average rate rounded down: over all of a window of 2 s at 30 frames a second only where the file has about
    28; less for a slower one; and for a faster one the last frame of the window comes several times.
    """

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [B, F, H, W, 3]. Raises :class:`VideoError` as :class:`vpgfast.video.Video`."""
        rate = math.floor(Video(self.path, stream=self.stream).rate)
        assert self.sampling.fps is not None
        assert self.sampling.frames is not None
        self.sampling = replace(self.sampling, span=2 * self.sampling.frames * rate / self.sampling.fps)
        yield from super().__iter__()
