"""Specs, which name encoders: ``family:weights[,option=value...]``; the families, and how options are read."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vpgfast.data.video_folders import named_like_flow, named_like_video
from vpgfast.errors import ConfigError

ENCODERS = {
    "clip": "vpgfast.encoders.clip:Clip",
    "video_text": "vpgfast.encoders.video_text:VideoText",
    "c3d": "vpgfast.encoders.c3d:C3D",
    "i3d": "vpgfast.encoders.i3d:I3D",
    "s3d_howto100m": "vpgfast.encoders.s3d_howto100m:S3DHowTo100M",
    "slowfast": "vpgfast.encoders.slowfast:SlowFast",
    "torchvision": "vpgfast.encoders.torchvision:Torchvision",
    "objects": "vpgfast.encoders.objects:Objects",
    "pixels": "vpgfast.encoders.pixels:Pixels",
}
"""Name of each family -> where its class is; imported only when asked for."""

_OPTION = re.compile(r",([a-z_][a-z_0-9]*)=([^,]*)$")


def parse_spec(spec: str) -> tuple[str, str | None, dict[str, str]]:
    """``family:weights,option=value`` -> family, weights (or ``None``), options as text.

    Raises:
        ConfigError: the family is unknown, or an option is given twice.
    """
    options: dict[str, str] = {}
    rest = spec.strip()
    while match := _OPTION.search(rest):
        if match[1] in options:
            raise ConfigError(f"encoder {spec!r}: option {match[1]} is given twice")
        options[match[1]] = match[2]
        rest = rest[: match.start()]
    family, _, weights = rest.partition(":")
    if family not in ENCODERS:
        close = difflib.get_close_matches(family, ENCODERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ENCODERS)}"
        raise ConfigError(f"encoder {spec!r}: no family {family!r} ({hint}); write FAMILY:WEIGHTS[,OPTION=VALUE...]")
    return family, weights or None, dict(reversed(options.items()))


def takes(family: str, options: Mapping[str, str]) -> Callable[[Path], bool]:
    """What an encoder with these options takes for a video among the files below a folder."""
    if family == "i3d" and options.get("modality") == "flow":
        return named_like_flow
    return named_like_video


def format_spec(family: str, weights: str | None, options: Mapping[str, Any]) -> str:
    """The inverse of :func:`parse_spec`."""
    text = family + (f":{weights}" if weights else "")
    return text + "".join(f",{name}={_as_text(value)}" for name, value in options.items())


def read_options(kind: type, given: Mapping[str, str], where: str, chosen: Mapping[str, Any] | None = None) -> Any:
    """An instance of an options dataclass from text.

    Args:
        kind: the dataclass.
        given: values as text; ``none`` is ``None``.
        where: for messages.
        chosen: values that stand where nothing is given.

    Raises:
        ConfigError: no such option, or the value is not of its type; names both.
    """
    hints = typing.get_type_hints(kind)
    values = dict(chosen or {})
    for name, text in given.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(hints) or 'none'}"
            raise ConfigError(f"{where}: no option {name!r} ({hint})")
        try:
            values[name] = _from_text(hints[name], text)
        except ValueError as error:
            raise ConfigError(f"{where}: option {name} {error}, got {text!r}") from None
    return kind(**values)


def _from_text(kind: Any, text: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", "null", ""):
            return None
        (kind,) = (one for one in inner if one is not type(None))
        return _from_text(kind, text)
    if origin is typing.Literal:
        if text not in inner:
            raise ValueError(f"must be one of {', '.join(inner)}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}") from None
    return text


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
