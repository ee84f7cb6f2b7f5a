"""Widths of Inception-v1's nine blocks, which I3D and S3D share."""

from __future__ import annotations

from typing import NamedTuple


class Widths(NamedTuple):
    """Channels of a block: four branches beside each other, joined in the order b0, b1, b2, b3.

    b0 is one convolution of size 1; b1 and b2 are one of size 1 (a) and one of size 3 (b); b3 is max pooling of size 3
    and a convolution of size 1.
    """

    inputs: int
    b0: int
    b1a: int
    b1b: int
    b2a: int
    b2b: int
    b3: int


BLOCKS = {
    "3b": Widths(192, 64, 96, 128, 16, 32, 32),
    "3c": Widths(256, 128, 128, 192, 32, 96, 64),
    "4b": Widths(480, 192, 96, 208, 16, 48, 64),
    "4c": Widths(512, 160, 112, 224, 24, 64, 64),
    "4d": Widths(512, 128, 128, 256, 24, 64, 64),
    "4e": Widths(512, 112, 144, 288, 32, 64, 64),
    "4f": Widths(528, 256, 160, 320, 32, 128, 128),
    "5b": Widths(832, 256, 160, 320, 32, 128, 128),
    "5c": Widths(832, 384, 192, 384, 48, 128, 128),
}
"""In their order. Max pooling (size 3, step 2) comes before 4b and (size 2, step 2) before 5b."""

DIM = 1024
"""Channels behind the last block."""
