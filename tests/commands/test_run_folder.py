"""What a kill may leave of a run: nothing that is taken for a part of the next one, or for a finished one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vpgfast import evaluate
from vpgfast.command import INTERRUPTED
from vpgfast.config import TrainConfig, dump_yaml, parse_train
from vpgfast.errors import CheckpointError, ConfigError
from vpgfast.evaluate import report
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


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt(), False), (CheckpointError("can't write it"), True)])
def test_a_run_is_finished_when_its_pictures_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kept: bool
) -> None:
    """Where one can't be written, the numbers are there all the same."""

    def draw(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(report, "draw_spans", draw)
    assert evaluate.main([str(run), "--output", str(tmp_path / "out")]) == (2 if kept else INTERRUPTED)
    assert (tmp_path / "out" / METRICS_FILE).exists() == kept
