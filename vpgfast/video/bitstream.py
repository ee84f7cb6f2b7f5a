"""What can be read in a packet without decoding it: whether other pictures refer to it, or to what was before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_H264_SLICES, _H264_IDR, _H264_HARMLESS = range(1, 6), 5, (6, 9, 12)  # SEI, delimiter, filler
_HEVC_IDR, _HEVC_HARMLESS = (19, 20), (35, 38, 39, 40)
_MPEG_B = 3
_MPEG4_B = 2
_QUANT_MATRICES = 3


class Bitstream:
    """Reads the packets of a stream.

    Args:
        codec: FFmpeg's name of the decoder.
        extradata: of the stream, as the container has it.
        intra_only: each picture of the codec is coded by itself.

    Attributes:
        has_clean_keys: :meth:`is_clean_key` can be true.
        has_disposable: :meth:`is_disposable` can be true.
    """

    def __init__(self, codec: str, extradata: bytes | None, intra_only: bool) -> None:
        record = extradata or b""
        self.codec = "vp9" if codec == "libvpx-vp9" else codec
        self.intra_only = intra_only
        # mp4 and Matroska have lengths in front of units, and a record that says of how many bytes; else start codes.
        self._lengths = codec in ("h264", "hevc") and record[:1] == b"\1"
        place = 4 if codec == "h264" else 21
        readable = not self._lengths or (len(record) > place and record[place] & 3 == 3)  # four bytes
        # A picture that none of its temporal layer refers to may be referred to from a higher one: there must be one.
        one_layer = self._lengths and len(record) > 21 and record[21] >> 3 & 7 == 1
        self.has_clean_keys = intra_only or self.codec == "vp9" or (codec in ("h264", "hevc") and readable)
        self.has_disposable = (
            intra_only
            or codec in ("mpeg1video", "mpeg2video", "mpeg4")
            or (readable and (codec == "h264" or (codec == "hevc" and one_layer)))
        )

    def is_clean_key(self, packet: Any) -> bool:
        """Whether nothing from this packet on refers to anything before it."""
        if not self.has_clean_keys or not packet.is_keyframe:
            return False
        data = bytes(packet)
        if self.codec == "vp9":
            # Frame marker 2, profiles 0 to 2, not a picture that is shown again, a key frame.
            return data[0] >> 6 == 2 and data[0] >> 4 & 3 != 3 and not data[0] & 0b1100
        if self.codec == "h264":
            return any(data[at] & 31 == _H264_IDR for at in self._units(data))
        if self.codec == "hevc":
            return any(data[at] >> 1 & 63 in _HEVC_IDR for at in self._units(data))
        return self.intra_only

    def is_disposable(self, packet: Any) -> bool:
        """Whether no other picture refers to this one, and nothing else in the packet is of use later."""
        if not self.has_disposable:
            return False
        if self.intra_only:
            return True
        data = bytes(packet)
        kinds = list(self._units(data))
        if self.codec == "h264":
            return bool(kinds) and all(
                not data[at] & 0xE0 if data[at] & 31 in _H264_SLICES else data[at] & 31 in _H264_HARMLESS
                for at in kinds
            )
        if self.codec == "hevc":
            return bool(kinds) and all(_hevc_is_disposable(data[at] >> 1 & 63) for at in kinds)
        if self.codec == "mpeg4":
            pictures = [data[at + 1] >> 6 for at in kinds if data[at] == 0xB6 and at + 1 < len(data)]
            return bool(pictures) and set(pictures) == {_MPEG4_B}
        pictures = [data[at + 2] >> 3 & 7 for at in kinds if data[at] == 0 and at + 2 < len(data)]
        changes = any(data[at] == 0xB5 and data[at + 1] >> 4 == _QUANT_MATRICES for at in kinds if at + 1 < len(data))
        return bool(pictures) and set(pictures) == {_MPEG_B} and not changes

    def _units(self, data: bytes) -> Iterator[int]:
        """Where the units of a packet begin, behind lengths or start codes; nothing if they don't fill it."""
        if not self._lengths:
            at = data.find(b"\0\0\1") + 3
            while 3 <= at < len(data):
                yield at
                at = data.find(b"\0\0\1", at) + 3
            return
        places, at = [], 4
        while at < len(data):
            places.append(at)
            at += int.from_bytes(data[at - 4 : at], "big") + 4
        if at == len(data) + 4:
            yield from places


def _h264_is_disposable(head: int) -> bool:
    return not head & 0xE0 if head & 31 in _H264_SLICES else head & 31 in _H264_HARMLESS


def _hevc_is_disposable(kind: int) -> bool:
    return kind in _HEVC_HARMLESS or (kind < 16 and kind % 2 == 0)
