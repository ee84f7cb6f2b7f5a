"""Features of videos: ``python -m vpgfast.extract VIDEOS_OR_FOLDERS --encoder SPEC -o features.h5``.

A kill at any moment loses at most the videos in work, and the same command goes on. Nothing is imported before it is
known to be needed: a second run over a folder that has not changed is to take no longer than looking at it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from vpgfast import __version__
from vpgfast.command import command, open_log
from vpgfast.data.feature_files import FeatureStore, Source, Stored, parts_folder, read_stored, source_line, unfit_names
from vpgfast.data.video_folders import named_videos
from vpgfast.encoders.presets import PRESETS
from vpgfast.encoders.specs import ENCODERS, parse_spec, takes
from vpgfast.errors import UserError
from vpgfast.extract.ranks import Ranks

log = logging.getLogger("vpgfast.extract")

SOME_FAILED = 1
"""Exit code when features were made, but not of every video."""


def _parser() -> argparse.ArgumentParser:
    families = ", ".join(ENCODERS)
    presets = "\n".join(f"  {name:<24} {preset.family}: {preset.about}" for name, preset in PRESETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.extract",
        description="Make features of videos, as train, evaluate, search and ground read them.",
        epilog=f"Encoders: {families}; docs/encoders.md says what each needs.\n\nPresets, settings under which "
        f"published features were made:\n{presets}\n\n"
        "The output keeps durations, times of rows, the encoder with a hash of its weights, and versions. The same "
        "command goes on\nafter a kill and looks only at what is new or changed. Several GPUs or machines that share a "
        "folder:\n  torchrun --nproc-per-node 4 -m vpgfast.extract ...\n\n"
        "Exit code 0: all videos; 1: some failed, see OUTPUT.failed.txt; 2: nothing could be done.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO_OR_FOLDER", help="folders are searched through")
    parser.add_argument("--encoder", required=True, metavar="SPEC", help="FAMILY:WEIGHTS[,OPTION=VALUE...], or objects")
    parser.add_argument("--preset", help="settings of published features, see below; options of the spec come after")
    parser.add_argument("-o", "--output", required=True, type=Path, help="an .h5 file, or a folder for .npz files")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored features")
    parser.add_argument("--on-bad", choices=("skip", "stop"), default="skip", help="a video that fails (default skip)")
    parser.add_argument("--strict", action="store_true", help="a video that is damaged or cut short fails")
    parser.add_argument("--stream", type=int, help="number of the stream in every file (default: the moving picture)")
    parser.add_argument(
        "--readers", type=int, help="processes that decode (default: 0 on a CPU, which is busy with the network)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    return parser


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast extract``."""
    arguments = _parser().parse_args(argv)
    rank, world = (_from_torchrun(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    open_log(quiet=rank > 0)
    if arguments.readers is not None and arguments.readers < 0:
        raise UserError(f"--readers must be 0 or more, got {arguments.readers}")
    family, weights, options = parse_spec(arguments.encoder)
    videos = named_videos(arguments.videos, takes(family, options))
    state = read_stored(arguments.output)
    sources, gone = _look_at(videos, state.done)
    asked = _asked(arguments, weights, *options.values())
    if world == 1 and not gone and _nothing_to_do(state, asked, sources, arguments.output):
        with suppress(OSError):  # where nothing can be written, there is no such list of this run
            _failed_list(arguments.output).unlink(missing_ok=True)
        print(f"{arguments.output}: {len(state.done)} videos, nothing new among {len(videos)}")
        return 0
    return _extract(arguments, asked, videos, sources, gone, rank, world)


def _from_torchrun(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment's {name} is {text!r}, not a number; start extract by torchrun, or unset it"
        ) from None


def _look_at(videos: dict[str, Path], there: Collection[str]) -> tuple[dict[str, Source], dict[str, str]]:
    """What is there of each video, and why not for those that can't be looked at, or be stored under their name."""
    sources: dict[str, Source] = {}
    gone = {name: f"video {videos[name]}: {why}; rename it" for name, why in unfit_names(videos, there).items()}
    for name, path in videos.items():
        if name in gone:
            continue
        try:
            sources[name] = Source.of(path)
        except OSError as error:
            gone[name] = f"video {path}: can't be looked at ({error.strerror})"
    return sources, gone


def _asked(arguments: argparse.Namespace, *given: str | None) -> str:
    """What was asked for, and the state of the files that it names (weights, tables): where all is the same, so are the
    features."""
    paths = [Path(one).expanduser() for one in given if one]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    stats = [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    about = [
        arguments.encoder,
        arguments.preset,
        arguments.dtype,
        arguments.stream,
        arguments.strict,
        __version__,
        stats,
    ]
    return json.dumps(about)


def _nothing_to_do(state: Stored, asked: str, sources: dict[str, Source], output: Path) -> bool:
    unfinished = parts_folder(output) != output and parts_folder(output).exists()
    same = bool(state.abouts) and all(about.get("asked") == asked for about in state.abouts)
    done = state.done
    return same and not unfinished and all(done.get(name) == source for name, source in sources.items())


def _extract(
    arguments: argparse.Namespace,
    asked: str,
    videos: dict[str, Path],
    sources: dict[str, Source],
    gone: dict[str, str],
    rank: int,
    world: int,
) -> int:
    from vpgfast.encoders.base import load_encoder
    from vpgfast.extract.run import Job, choose_device, encode_videos, versions

    for why in gone.values() if rank == 0 else ():
        if arguments.on_bad == "stop":
            raise UserError(f"{why}. Without --on-bad stop such videos are listed and left out")
        log.warning("left out: %s", why)
    device = choose_device(arguments.device, int(os.environ.get("LOCAL_RANK", 0)))
    readers = arguments.readers
    if readers is None:
        readers = 0 if device.type == "cpu" else max(1, min(8, (os.cpu_count() or 1) // world - 1))
    encoder = load_encoder(arguments.encoder, arguments.preset, device)
    store = FeatureStore(
        arguments.output, encoder.identity(), {"asked": asked, "versions": versions()}, arguments.dtype, rank
    )
    with store.locked():
        done = read_stored(arguments.output).done
        # Shares go by all names: which of them are done already, each process sees at another moment.
        mine = sorted(sources)[rank::world]
        todo = [name for name in mine if done.get(name) != sources[name]]
        log.info("%s on %s, width %d", source_line(encoder.identity()), device, encoder.dim)
        if len(todo) < len(mine):
            log.info("%d of %d videos are in %s already", len(mine) - len(todo), len(mine), arguments.output)
        ranks = Ranks(rank, world)
        jobs = [
            Job(name, encoder.clips(videos[name], arguments.stream, arguments.strict), sources[name]) for name in todo
        ]
        failed = encode_videos(encoder, store, jobs, readers, arguments.on_bad, ranks.at)
        if rank > 0:
            ranks.report(len(todo), failed)
            return 0
        tried, failed_elsewhere = ranks.gather()
        failed |= failed_elsewhere
        store.finish()
    new = len(todo) + tried - len(failed)
    return _report(arguments.output, new, videos, failed | gone, encoder.dim)


def _failed_list(output: Path) -> Path:
    named = output if output.name not in ("", "..") else Path(os.path.abspath(output))  # the folder that one is in
    return named.with_name(named.name + ".failed.txt")


def _report(output: Path, new: int, videos: dict[str, Path], failed: dict[str, str], dim: int) -> int:
    """List what failed, then say what there is now."""
    listed = _failed_list(output)
    try:
        listed.unlink(missing_ok=True)
        if failed:
            lines = "".join(f"{videos[name]}\t{why}\n" for name, why in sorted(failed.items()))
            listed.write_text(lines, "utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{listed}: can't be written ({error.strerror}); {len(failed)} videos failed") from None
    done = read_stored(output).done
    others = len(done.keys() - videos.keys())
    gone = f"; {others} are no longer among those named, and stay" if others else ""
    print(f"{output}: {len(done)} videos, {new} of them new, width {dim}{gone}")
    if failed:
        print(f"{len(failed)} of {len(videos)} videos failed, listed in {listed}; the same command tries them again")
    return SOME_FAILED if failed else 0
