"""A run's folder: is this run in it, and how far?"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from vpgfast.config import TrainConfig, dump_yaml, flatten, to_dict
from vpgfast.errors import ConfigError
from vpgfast.files import CONFIG_FILE, METRICS_FILE, MODEL_FILE, STATE_FILE, hold, output_folder, write_file

# Settings that change where or how fast a run goes, not what it computes; the device and precision do change it.
_FREE = ("output", "num_workers", "pictures", "checkpoint_every", "process_minutes", "data.cache")


@contextmanager
def held(output: Path, config: TrainConfig) -> Iterator[None]:
    """Make a run's folder and keep other processes from training in it.

    Raises:
        ConfigError: another one does.
        UserError: the folder can't be made.
    """
    if not output.is_dir() and not config.resume:
        output_folder(output)
    with ExitStack() as stack:
        # A finished run can be shown where nothing can be written, and whoever writes will say so.
        with suppress(OSError):
            lock = stack.enter_context((output / ".lock").open("a"))
            if not hold(lock):
                raise ConfigError(f"{output}: another process is training there; wait for it, or give another --output")
        yield


def look_into(output: Path, config: TrainConfig) -> str:
    """Whether the run's folder holds this run: "new", "unfinished" or "finished"; makes the folder and its config file.

    Raises:
        ConfigError: it holds another run, or ``--resume`` finds nothing to resume.
    """
    if config.overwrite and config.resume:
        raise ConfigError("--resume and --overwrite contradict each other")
    file = output / CONFIG_FILE
    if config.overwrite:
        remove_run(output)
    # A run that failed before its first epoch has left nothing that could be lost.
    if file.is_file() and any((output / name).is_file() for name in (STATE_FILE, MODEL_FILE, METRICS_FILE)):
        try:
            difference = first_difference(yaml.safe_load(file.read_text()), to_dict(config))
        except yaml.YAMLError:
            raise ConfigError(f"{file} is damaged; give another --output, or --overwrite") from None
        if difference:
            raise ConfigError(
                f"{output} holds a run with other settings ({difference}); give another --output, or --overwrite it"
            )
        if (output / METRICS_FILE).is_file():
            return "finished"
        if (output / STATE_FILE).is_file():
            return "unfinished"
    if config.resume:
        raise ConfigError(f"--resume: {output} holds no training state; leave --resume out to start there")
    output_folder(output)
    write_file(file, dump_yaml(config).encode())
    return "new"


def remove_run(output: Path) -> None:
    """Delete what a run writes, and nothing else that may lie in the folder.

    The settings go last: what a kill leaves is still known to be of that run, and is not taken for one of the next.
    """
    pictures = ("spans.png", "ious.png", "labels.png", "attention.png", "moments.png", "training.png")
    for name in (METRICS_FILE, STATE_FILE, MODEL_FILE, "log.txt", *pictures):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    (output / CONFIG_FILE).unlink(missing_ok=True)


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first setting that two runs do not share, as ``key: 1 there, 2 here``; nothing if they are the same run."""
    old, new = flatten(there), flatten(here)
    for key in itertools.chain(new, old):
        if key not in _FREE and (key not in old or key not in new or old[key] != new[key]):
            return f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
    return ""
