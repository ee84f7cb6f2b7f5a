"""What a kill may leave of a run that was to be overwritten: never a part of the next one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vpgfast.config import TrainConfig, dump_yaml, parse_train
from vpgfast.errors import ConfigError
from vpgfast.files import CONFIG_FILE, METRICS_FILE, MODEL_FILE, STATE_FILE
from vpgfast.train.folder import look_into


@pytest.mark.parametrize("allowed", range(8))
def test_killed_while_the_old_run_is_deleted(tmp_path: Path, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command, with or without --overwrite, starts anew or says that another run is there."""
    old: TrainConfig = parse_train(["--method=tiny", "--seed=7"])
    new: TrainConfig = parse_train(["--method=tiny", "--seed=8"])
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(old))
    for name in (STATE_FILE, MODEL_FILE, METRICS_FILE, "log.txt", "spans.png", "training.png"):
        (tmp_path / name).write_text(f"{name} of the old run")
    real, deleted = Path.unlink, 0

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal deleted
        if deleted == allowed:
            raise KeyboardInterrupt
        deleted += 1
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with suppress(KeyboardInterrupt):
            look_into(tmp_path, replace(new, overwrite=True))
    if any((tmp_path / name).exists() for name in (STATE_FILE, MODEL_FILE, METRICS_FILE)):
        with pytest.raises(ConfigError, match=r"holds a run with other settings \(seed: 7 there, 8 here\)"):
            look_into(tmp_path, new)
    assert look_into(tmp_path, replace(new, overwrite=True)) == "new"
    assert (tmp_path / CONFIG_FILE).read_text() == dump_yaml(new)
    assert not any((tmp_path / name).exists() for name in (STATE_FILE, MODEL_FILE, METRICS_FILE))
    assert look_into(tmp_path, new) == "new"
