"""The files of a run, and how every file of results is written: whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

from vpgfast.errors import CheckpointError

CONFIG_FILE = "config.yaml"
MODEL_FILE = "best.safetensors"
STATE_FILE = "training_state.pt"
METRICS_FILE = "metrics.json"
"""In a run's folder."""
SHARED_MODEL_FILE = "model.safetensors"
SHARED_CONFIG_FILE = "config.json"
"""In the folder of a model that is shared, named as Hugging Face has it."""


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name in the same folder, to the disk, then moved into place.

    Raises:
        CheckpointError: it can't be written (disk full, no permission); what was at ``path`` before is untouched and no
            temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # always the same name: what a kill leaves is overwritten
    try:
        with temporary.open("wb") as file:
            _write(file, data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        before = "; the file before it is untouched" if path.exists() else ""
        raise CheckpointError(f"can't write {path}: {error.strerror or error}{before}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(file: io.BufferedWriter, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
