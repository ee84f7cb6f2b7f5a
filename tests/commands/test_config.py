"""Settings from a file and the command line, and the one-line errors they give."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vpgfast.config import TrainConfig, dump_yaml, flatten, from_dict, nearest, parse_train, to_dict
from vpgfast.data.options import OwnAnnotations
from vpgfast.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_defaults() -> None:
    config = parse_train([])
    assert config.method == "seqpan"
    assert config.data.corpus == "moving_shapes"
    assert config.output_folder() == Path("runs/seqpan-moving_shapes")


def test_file_then_arguments(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: tiny\nmodel:\n  width: 5\noptim:\n  lr: 1e-4\n  clip: null\nmetrics:\n  top_n: [1, 3]\ndata:\n"
    )
    config = parse_train(["--config", str(file), "--optim.lr", "3e-4", "--model.level=paragraph"])
    assert (config.method, config.model.width, config.model.level) == ("tiny", 5, "paragraph")
    assert (config.optim.lr, config.optim.clip) == (3e-4, None)
    assert config.metrics.top_n == (1, 3)
    assert parse_train(["--optim.lr=3e-4", "--config", str(file)]).optim.lr == 3e-4  # in either order


def test_method_decides_what_the_model_settings_are() -> None:
    assert parse_train(["--method", "tiny", "--model.width", "3"]).model.width == 3
    with pytest.raises(ConfigError, match=r"^unknown argument '--model.width'"):
        parse_train(["--method", "seqpan", "--model.width", "3"])


def test_annotations_of_ones_own(tmp_path: Path) -> None:
    """Files by split, from a file and from the command line."""
    file = tmp_path / "own.yaml"
    file.write_text("data:\n  corpus: own\n  annotations:\n    train: a.csv\n    val: v.csv\n")
    args = ["--data.annotations.test", "t.tsv", "--data.annotations.val=null"]
    config = parse_train(["--config", str(file), *args])
    assert config.data.annotations == OwnAnnotations(train=Path("a.csv"), val=None, test=Path("t.tsv"))
    assert parse_train(["--data.corpus=own", "--data.annotations.train=a.csv", *args]).data == config.data
    assert from_dict(to_dict(config), "test") == config
    assert to_dict(config)["data"]["annotations"] == {"train": "a.csv", "val": None, "test": "t.tsv"}


def test_settings_survive_yaml_and_dict() -> None:
    config = parse_train(["--method=tiny", "--output=here", "--metrics.thresholds=[0.1,0.5]", "--patience=null"])
    assert from_dict(to_dict(config), "test") == config
    assert from_dict(yaml.safe_load(dump_yaml(config)), "test") == config


def test_what_to_do_now_is_no_setting() -> None:
    config = parse_train(["--method=tiny", "--resume"])
    assert config.resume
    assert "resume" not in to_dict(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim:\n  lrr: 1", "unknown key 'optim.lrr' (did you mean 'optim.lr'?)"),
        ("lr: 1", "unknown key 'lr' (did you mean 'optim.lr'?)"),
        ("optm:\n  lr: 1", "unknown key 'optm.lr' (did you mean 'optim.lr'?)"),
        ("model:\n  widht: 1", "unknown key 'model.widht' (did you mean 'model.width'?)"),
        ("data:\n  moving_shapes:\n    nois: 1", "unknown key 'data.moving_shapes.nois'"),
        ("qwertyuiop: 1", "unknown key 'qwertyuiop'"),
        ("data:\n  annotations: a.csv", "'data.annotations' is a section of settings, found 'a.csv'"),
        ("optim: 3", "'optim' is a section of settings, found 3"),
        ("optim:\n  lr: fast", "optim.lr: expected float, got fast"),
        ("epochs: 1.5", "epochs: expected int, got 1.5"),
        ("optim:\n  schedule: cosine", "optim.schedule: expected one of 'linear', 'constant', 'step', got cosine"),
        ("metrics:\n  top_n: 3", "metrics.top_n: expected tuple, got 3"),
        ("method: tinny", "unknown method 'tinny' (did you mean 'tiny'?)"),
        ("method: [1]", "unknown method [1]"),
        ("a: [", "not valid YAML"),
        ("- 1", "must hold 'key: value' lines, found list"),
    ],
)
def test_bad_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        content if "method" in content else f"method: tiny\n{content}" if content[0] not in "a-" else content
    )
    with pytest.raises(ConfigError) as caught:
        parse_train(["--config", str(file)])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"config file none\.yaml: no such file"):
        parse_train(["--config", "none.yaml"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optm.lr=1"], "unknown argument '--optm.lr' (did you mean '--optim.lr'?)"),
        (["--lr", "1"], "unknown argument '--lr' (did you mean '--optim.lr'?)"),
        (["--optim.lr", "fast"], "the command line: optim.lr: expected float, got fast"),
        (["--optim.lr", "-1"], "optim.lr must be above 0, got -1.0"),
        (["--epochs=0"], "epochs must be at least 1, got 0"),
        (["--top_n=3"], "top_n is 3, but metrics.top_n asks for the best 5"),
        (["--metrics.clips=3", "--metrics.segment_seconds=5"], "give clips or segment_seconds, not both"),
        (["--seed"], "expected one argument"),
        (["--data.annotations.trian=a.csv"], "(did you mean '--data.annotations.train'?)"),
        (["--data.annotations=a.csv"], "give them one by one, as in --data.annotations.train"),
        (["--data", "none.yaml"], "--data takes a YAML file of all its settings, which 'none.yaml' is not"),
        (["--config"], "expected one argument"),
    ],
)
def test_bad_arguments(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_train(args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nearest() -> None:
    assert nearest("lr", ["epochs", "optim.lr"]) == " (did you mean 'optim.lr'?)"
    assert nearest("epoch", ["epochs", "optim.lr"]) == " (did you mean 'epochs'?)"
    assert nearest("zzz", ["epochs", "optim.lr"]) == ""


def test_help_names_the_settings_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["--method=tiny", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--optim.lr LR learning rate at the start", "--model.width WIDTH of its one hidden layer", "--resume"):
        assert part in text


@pytest.mark.parametrize(
    "file",
    sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "\ntables:" not in path.read_text()),
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_shipped_configs_are_valid(file: Path) -> None:
    config = parse_train(["--config", str(file)])
    assert config.method == file.parent.name


def test_defaults_are_the_shipped_quick_run() -> None:
    """The run without arguments works from an installed package, which has no configs folder."""
    shipped = ROOT / "configs" / "seqpan" / "moving_shapes.yaml"
    assert parse_train(["--config", str(shipped)]) == parse_train([])


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": [3]}) == {"a.b.c": 1, "a.d": 2, "e": [3]}


def test_every_setting_has_a_default() -> None:
    TrainConfig()
