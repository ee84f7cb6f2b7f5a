"""Frames of a video file at given times, as a stream in bounded memory.

    video = Video("clip.mp4")
    for frames in video.frames(fps=2, picture=Picture(short_side=224, crop=(224, 224))):
        frames.pixels, frames.times  # uint8 [N, 224, 224, 3]; seconds float64 [N]
    video.duration, video.problems

numpy and PyAV are all that it needs; torchcodec, where it is installed and loads, can do the decoding.
"""

from vpgfast.video.picture import Picture
from vpgfast.video.reader import Video
from vpgfast.video.sampling import Frames

__all__ = ["Frames", "Picture", "Video"]
