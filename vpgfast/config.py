"""Settings of a run: dataclasses, filled from a YAML file and the command line (``--config file --optim.lr 1e-4``)."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from vpgfast.data.options import DataConfig
from vpgfast.errors import ConfigError
from vpgfast.metrics.rules import DIDEMO_MOMENTS, MetricRules
from vpgfast.models.registry import METHODS, get_config

DEFAULT_METHOD = "seqpan"
QUICK_RUN: dict[str, Any] = {
    "method": DEFAULT_METHOD,
    "model": {"dropout": 0.1},
    "optim": {"lr": 2e-3},
    "batch_size": 16,
    "epochs": 10,
}
"""The run without ``--config``: ``configs/seqpan/moving_shapes.yaml``, which an installed package doesn't have."""
_ACTIONS = {
    "resume": "continue the unfinished run in the output folder, or fail if there is none; without this an unfinished "
    "run with the same settings is continued, too",
    "overwrite": "delete the run that is in the output folder first",
}


@dataclass
class OptimConfig:
    """Optimiser and learning rate.

    Attributes:
        name: "adamw" (decay apart from the gradient), "adam", or "bert_adam" (adamw without bias correction, as
            SeqPAN's released code has it).
        lr: learning rate at the start.
        weight_decay: on matrices and larger; biases and normalisation weights are left alone.
        schedule: "linear" falls to nothing over the epochs, epoch by epoch; "constant" stays; "step" multiplies it by
            step_factor every step_epochs.
        step_epochs: see schedule.
        step_factor: see schedule.
        clip: largest norm of the whole gradient; null for no limit.
    """

    name: Literal["adamw", "adam", "bert_adam"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["linear", "constant", "step"] = "linear"
    step_epochs: int = 20
    step_factor: float = 0.8
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"optim.lr must be above 0, got {self.lr}")
        if self.step_epochs < 1:
            raise ConfigError(f"optim.step_epochs must be at least 1, got {self.step_epochs}")


@dataclass
class TrainConfig:
    """The run.

    Attributes:
        method: which method to train.
        model: settings of the method.
        data: what it is trained on.
        optim: how it is trained.
        metrics: how it is judged.
        batch_size: items a batch and device: sentences, or paragraphs for a method that takes those.
        epochs: passes over the training split.
        patience: stop after this many epochs without a better validation score; null never stops early.
        select_by: which epoch is kept: that with the highest validation metric, such as "mIoU" or "R@1 IoU=0.5"; or, of
            what sees no timestamp, "loss" (the method's own on the validation split, the lowest), "last" (no choice),
            "corpus R@10" (how often the video is found; methods that find videos).
        top_n: spans a sentence that the method ranks at evaluation; at least the largest of metrics.top_n, and with
            metrics.annotators best3 all 21 of DiDeMo's moments.
        seed: of the start weights, dropout and the order of batches.
        output: folder for everything a run leaves; default: runs/METHOD-CORPUS.
        resume: continue the unfinished run in the output folder, or fail if there is none.
        overwrite: delete the run in the output folder first.
        checkpoint_every: epochs between two training states.
        accelerator: "auto", "cpu", "cuda".
        devices: how many; "auto" takes all.
        strategy: how several devices work together: "auto" (which is "ddp"), "ddp", "ddp_find_unused_parameters_true".
        process_minutes: how long one process waits for another, at the start and later; then it says which is missing.
        precision: "32-true", "bf16-mixed", "16-mixed", ...
        num_workers: processes that load data; 0 loads in the main one.
        pictures: test videos to draw true and predicted spans of.
    """

    method: str = DEFAULT_METHOD
    model: Any = None
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    metrics: MetricRules = field(default_factory=MetricRules)
    batch_size: int = 32
    epochs: int = 20
    patience: int | None = 10
    select_by: str = "mIoU"
    top_n: int = 10
    seed: int = 0
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: int = 1
    accelerator: str = "auto"
    devices: int | str = "auto"
    strategy: str = "auto"
    process_minutes: float = 30.0
    precision: str = "32-true"
    num_workers: int = 0
    pictures: int = 6

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "checkpoint_every", "top_n"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.metrics.annotators == "best3":
            self.top_n = max(self.top_n, DIDEMO_MOMENTS)
        if self.top_n < max(self.metrics.top_n):
            raise ConfigError(f"top_n is {self.top_n}, but metrics.top_n asks for the best {max(self.metrics.top_n)}")

    def output_folder(self) -> Path:
        """Where the run goes."""
        return self.output if self.output is not None else Path("runs") / f"{self.method}-{self.data.corpus}"


def parse_train(argv: Sequence[str], prog: str = "python -m vpgfast.train") -> TrainConfig:
    """Command line -> settings: defaults, then the file named by ``--config``, then the other arguments.

    Raises:
        ConfigError: an unknown key (names the nearest valid one), a wrong value, an unreadable file; one line.
        SystemExit: after ``--help``.
    """
    # Which method it is decides what --model.* means, so that and the file are looked up first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--method")
    try:
        known, rest = first.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    settings, source = QUICK_RUN, "the command line"
    if known.config is not None:
        settings, source = read_yaml(known.config), str(known.config)
    elif known.method not in (None, DEFAULT_METHOD):
        settings = {}
    own = settings.get("method", DEFAULT_METHOD)
    method = known.method or own
    parser = _parser(method, source, prog)
    _set_defaults(parser, for_method(flatten(settings), own, method), source)
    return _instantiate(parser, method, _parse_args(parser, rest))


def for_method(settings: Mapping[str, Any], own: str, method: str) -> dict[str, Any]:
    """Settings of a run of ``own`` for a run of ``method``: those below ``model`` only where both methods have them.

    Args:
        settings: dotted, as of :func:`flatten`; what is a setting of neither stays, for whoever checks them.
    """
    if own == method or own not in METHODS or method not in METHODS:
        return dict(settings)
    left = {field.name for field in fields(get_config(own))} - {field.name for field in fields(get_config(method))}
    return {key: value for key, value in settings.items() if key not in {f"model.{name}" for name in left}}


def from_dict(settings: Mapping[str, Any], source: str, argv: Sequence[str] = (), prog: str = "vpgfast") -> TrainConfig:
    """Settings as :func:`to_dict` gave them -> a config; ``argv`` may change some (``--data.root``, ...).

    Args:
        source: where the settings come from, for error messages.

    Raises:
        ConfigError: as :func:`parse_train`.
    """
    method = settings.get("method", DEFAULT_METHOD)
    parser = _parser(method, source, prog)
    if isinstance(settings.get("model"), Mapping):
        settings = {**settings, "model": get_config(method).of_checkpoint(settings["model"])}
    _set_defaults(parser, settings, source)
    return _instantiate(parser, method, _parse_args(parser, argv))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Every setting as plain numbers, strings, lists and dicts, as YAML and JSON can hold them.

    ``resume`` and ``overwrite`` are left out: they say what to do now, not what the run is.
    """
    return {key: _plain(value) for key, value in asdict(config).items() if key not in _ACTIONS}


def dump_yaml(config: TrainConfig) -> str:
    """Every setting as YAML that ``--config`` reads."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` -> ``{"optim.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nearest(word: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing if no valid word is like it."""
    valid = list(valid)
    # A slip of the finger first, then a right name without its section (lr for optim.lr), then anything alike.
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.85)
    close = close or [name for name in valid if name.split(".")[-1] == word.split(".")[-1]]
    close = close or difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key that is there twice is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: str = "config file") -> dict[str, Any]:
    """What a YAML file of ``key: value`` lines holds.

    Args:
        kind: what errors call the file.

    Raises:
        ConfigError: it is missing, unreadable, no YAML (names the line), or holds something else.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(f"{kind} {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {path}: unreadable ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{kind} {path}{line}: not valid YAML ({problem})") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{kind} {path}: must hold 'key: value' lines, found {type(settings).__name__}")
    return settings


def _parser(method: str, source: str, prog: str) -> ArgumentParser:
    if not isinstance(method, str) or method not in METHODS:
        hint = nearest(str(method), METHODS) or f" (there are: {', '.join(METHODS)})"
        raise ConfigError(f"{source}: unknown method {method!r}{hint}")
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        usage=f"{prog} [--config FILE] [--output FOLDER] [--KEY VALUE ...]",
        description="Train a grounding method and evaluate it. Without arguments: SeqPAN on moving_shapes, made here.",
        epilog="Settings are taken from --config FILE, then from the arguments. --method decides what --model.* means; "
        "of a file for another method it takes the model settings that both have.",
    )
    # Both are read beforehand; they stand here for --help and so that --method may also come last.
    parser.add_argument("--config", type=str, default=None, help="YAML file of settings; see configs/")
    parser.add_class_arguments(TrainConfig, skip={"model", *_ACTIONS})
    for action, text in _ACTIONS.items():
        parser.add_argument(f"--{action}", action="store_true", help=text)
    parser.add_class_arguments(get_config(method), "model")
    parser.set_defaults({"method": method})
    return parser


@functools.cache
def _keys(method: str) -> tuple[str, ...]:
    """Every key that a file can set, dotted; sections themselves are none."""
    defaults = _parser(method, "", "").get_defaults().as_dict()
    return tuple(key for key in flatten(defaults) if key not in ("config", *_ACTIONS))


def _set_defaults(parser: ArgumentParser, settings: Mapping[str, Any], source: str) -> None:
    """Check settings from a file, and make them the defaults."""
    keys = _keys(parser.get_default("method"))
    sections = {".".join(key.split(".")[:i]) for key in keys for i in range(1, key.count(".") + 1)}
    # "model:" with nothing below it is a section without settings, not a setting of nothing.
    flat = {key: value for key, value in flatten(settings).items() if not (key in sections and value is None)}
    for key, value in flat.items():
        if key in sections:
            raise ConfigError(f"{source}: {key!r} is a section of settings, found {value!r}")
        if key not in keys:
            raise ConfigError(f"{source}: unknown key {key!r}{nearest(key, keys)}")
        if value is None and not _takes_nothing(key, parser.get_default("method")):
            raise ConfigError(f"{source}: {key} is nothing (null), which it can't be; give a value or leave it out")
    try:
        parsed = flatten(parser.parse_object(_nest(flat), defaults=False).as_dict())
    except ArgumentError as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from None
    parser.set_defaults({key: parsed[key] for key in flat})


def _takes_nothing(key: str, method: str) -> bool:
    """Whether a setting may be ``null``."""
    kind: Any = TrainConfig
    for name in key.split("."):
        kind = get_config(method) if kind is TrainConfig and name == "model" else get_type_hints(kind)[name]
    return kind is Any or type(None) in get_args(kind)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return nested


def _parse_args(parser: ArgumentParser, argv: Sequence[str]) -> Any:
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        unknown = re.match(r"unrecognized arguments: (?:--)?([^\s=]+)", str(error))
        if unknown:
            hint = nearest(unknown[1], _keys(parser.get_default("method")))
            raise ConfigError(f"unknown argument '--{unknown[1]}'{hint.replace(chr(39), chr(39) + '--', 1)}") from None
        message = _one_line(error)
        section = re.match(r"(\S+): Unable to load config ('[^']*')", message)
        if section:  # --data.annotations FILE, where --data.annotations.train FILE is meant
            first = next(key for key in _keys(parser.get_default("method")) if key.startswith(f"{section[1]}."))
            raise ConfigError(
                f"the command line: --{section[1]} takes a YAML file of all its settings, which {section[2]} is not; "
                f"give them one by one, as in --{first}"
            ) from None
        raise ConfigError(f"the command line: {message}") from None


def _one_line(error: ArgumentError) -> str:
    """jsonargparse's message without its line breaks and Python's spelling of types."""
    text = " ".join(str(error).split())
    text = re.sub(r"^Parser key \"([^\"]+)\": ", r"\1: ", text)
    text = re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return re.sub(r"typing\.Literal\[([^\]]+)\]", r"one of \1", text)


def _instantiate(parser: ArgumentParser, method: str, parsed: Any) -> TrainConfig:
    del parsed["config"]
    values = parser.instantiate(parsed).as_dict()
    return TrainConfig(**{**values, "method": method})
