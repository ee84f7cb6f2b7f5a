"""What ``vpgfast.load`` takes: a run, a checkpoint, an encoder's spec, or a model that was shared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpgfast.api.grounder import Grounder
from vpgfast.checkpoint import build_model, load_checkpoint, settings_of
from vpgfast.errors import CheckpointError
from vpgfast.files import METRICS_FILE, SHARED_CONFIG_FILE
from vpgfast.untrained import as_checkpoint, is_untrained

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_SHARED = ("model.safetensors", "config.json", "README.md")


def load(
    source: str | Path,
    *,
    encoder: str | None = None,
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> Grounder:
    """A model that is ready to be asked.

    Args:
        source: the folder of a run; a ``.safetensors`` file; a folder that :meth:`Grounder.save_pretrained` wrote; the
            spec of an encoder that reads text ("objects", "clip:FOLDER"), which needs no training; or the name of a
            model on Hugging Face's hub, "user/name", which is downloaded unless it is in the cache.
        encoder: spec of the encoder of its features, where its weights lie elsewhere now.
        device: where the networks go, as torch names it.
        settings: of the run, to be changed, as in ``{"model.decode": "ordered"}``.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
        ConfigError: a setting is wrong.
    """
    argv = [f"--{name}={value}" for name, value in (settings or {}).items()]
    return load_with(_find(source), argv, encoder, device, str(source))


def load_with(
    source: Path, settings: Sequence[str], encoder: str | None = None, device: str = "cpu", name: str = ""
) -> Grounder:
    """:func:`load` as commands need it: settings as a command line has them, and no look at the hub, which a path that
    is mistyped must not lead to."""
    place = as_checkpoint(source)
    checkpoint = load_checkpoint(place)
    config = settings_of(checkpoint, place, settings)
    model = build_model(checkpoint, config.model, place).to(device)
    folder = place if place.is_dir() else place.parent
    return Grounder(checkpoint, config, model, name or str(source), _results(folder), encoder)


def _find(source: str | Path) -> Path:
    """A file, a folder or a spec as it is given; for the name of a model on the hub, the folder of its files."""
    path = Path(source)
    if path.exists() or is_untrained(path):
        return path
    if not _REPOSITORY.fullmatch(str(source)) or path.parent.is_dir():  # runs/mistyped is no name
        raise CheckpointError(f"{source}: no such file or folder, no encoder's spec, and no name on a hub (user/name)")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f"{source}: no such file or folder; to take it from Hugging Face's hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_SHARED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: no such file or folder, and the hub does not give it ({reason})") from None


def _results(folder: Path) -> dict[str, Any] | None:
    """What was measured of a model: ``metrics.json`` of its run, or what it was shared with."""
    for name, key in ((METRICS_FILE, None), (SHARED_CONFIG_FILE, "results")):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # it is told in the card only; nothing is computed from it
        found = content.get(key) if key and isinstance(content, dict) else content
        return found if isinstance(found, dict) else None
    return None
