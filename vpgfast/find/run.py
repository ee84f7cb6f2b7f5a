"""From videos and sentences to moments, without training."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vpgfast.cache import encoded, home_folder
from vpgfast.data.text import tokenize
from vpgfast.data.video_folders import named_videos
from vpgfast.encoders.base import Encoder, load_encoder
from vpgfast.errors import UserError, VideoError
from vpgfast.files import output_folder
from vpgfast.find.clips import cut, is_exact
from vpgfast.find.moments import Asked, Moment, ask, best
from vpgfast.page.results import find_content
from vpgfast.page.write import write_page

log = logging.getLogger(__name__)

CACHED = (
    "google/siglip2-base-patch16-224",
    "google/siglip-base-patch16-224",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-base-patch32",
)
"""Models that are taken without being named, the best first, if Hugging Face's cache has them."""


def run(arguments: argparse.Namespace, videos: Sequence[Path], sentences: Sequence[str]) -> bool:
    """Do what the command line asks; whether something was found."""
    if empty := next((sentence for sentence in sentences if not tokenize(sentence)), None):
        raise UserError(f"the sentence {empty!r} has no word in it")
    if arguments.clips is not None:
        output_folder(arguments.clips, "--clips", keep=False)
    files = named_videos(videos)
    spec = arguments.encoder or default_encoder()
    encoder = load_encoder(spec)
    if not encoder.has_text:
        raise UserError(f"--encoder {spec}: reads no text; objects and clip:FOLDER do")
    if encoder.family == "objects":
        log.info(
            "encoder objects: knows things (barbell, dog, stage), no actions; a CLIP model knows more: --encoder "
            "clip:FOLDER, or VPGFAST_ENCODER"
        )
    in_order = len(sentences) > 1 and not arguments.no_order
    asked = Asked(encoder, sentences, in_order, arguments.false_alarms)
    moments: list[Moment] = []
    failed: dict[str, str] = {}
    durations: dict[str, float] = {}
    for name, path in tqdm(files.items(), desc="looking", unit="video", delay=2, leave=False, disable=None):
        try:
            video = encoded(encoder, path, arguments.stream)
        except VideoError as error:
            if len(files) == 1:
                raise
            log.warning("left out: %s", error)
            failed[name] = str(error)
            continue
        durations[name] = video.duration
        moments += ask(asked, name, path, video, arguments.top)
    shown = _best(moments, arguments, in_order)
    clips = _cut(shown, arguments.clips) if arguments.clips else {}
    if arguments.page is not None:
        content = find_content(shown, sentences, durations, encoder.identity().spec)
        write_page(arguments.page, content, arguments.page_embed)
    _print(shown, clips, arguments, encoder, sentences, len(files), failed)
    return any(moment.fits for moment in shown)


def default_encoder() -> str:
    """The encoder that is taken where none is named."""
    if named := os.environ.get("VPGFAST_ENCODER"):
        return named
    home = Path(os.environ.get("HF_HOME") or home_folder() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for model in CACHED:
        if (hub / f"models--{model.replace('/', '--')}" / "snapshots").is_dir():
            return f"clip:{model}"
    return "objects"


def _best(moments: Sequence[Moment], arguments: argparse.Namespace, in_order: bool) -> list[Moment]:
    """What is shown."""
    left = [m for m in moments if arguments.min_score is None or m.score >= arguments.min_score]
    return best([m for m in left if m.fits or arguments.all], arguments.top, in_order)


def _cut(moments: Sequence[Moment], folder: Path) -> dict[int, tuple[Path, float]]:
    """Clips of moments, by their place in the list: the file, and how many seconds it begins early."""
    output_folder(folder, "--clips")
    made = {}
    for rank, moment in enumerate(tqdm(moments, desc="cutting", unit="clip", delay=2, leave=False, disable=None)):
        target = folder / f"{rank + 1:02d}-{Path(moment.video).name}-{moment.start:.1f}s{moment.path.suffix}"
        made[rank] = (target, cut(moment.path, moment.start, moment.end, target))
    return made


def clock(seconds: float) -> str:
    """``h:mm:ss.s``."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def _print(
    moments: Sequence[Moment],
    clips: dict[int, tuple[Path, float]],
    arguments: argparse.Namespace,
    encoder: Encoder,
    sentences: Sequence[str],
    videos: int,
    failed: dict[str, str],
) -> None:
    if arguments.json:
        identity = encoder.identity()
        rows = []
        for rank, moment in enumerate(moments):
            row = moment.as_dict(sentences)
            if rank in clips:
                row |= {"clip": str(clips[rank][0]), "clip_begins_early": round(clips[rank][1], 3)}
            rows.append({"rank": rank + 1, **row})
        about = {"spec": identity.spec, "sha256": identity.sha256}
        print(
            json.dumps(
                {"encoder": about, "sentences": list(sentences), "videos": videos, "moments": rows, "failed": failed},
                indent=2,
                ensure_ascii=False,
            )
        )
        return
    if not any(moment.fits for moment in moments):
        print("nothing fits" + (" as well as that; the best:" if moments else "; --all shows the best all the same"))
    for rank, moment in enumerate(moments):
        line = f"{rank + 1:3d}.  {clock(moment.start)} - {clock(moment.end)}   score {moment.score:.3f}"
        line += "" if moment.fits else " (does not fit)"
        print(f"{line}   {moment.path}" + (f"   {sentences[moment.sentence]}" if len(sentences) > 1 else ""))
        if rank in clips:
            target, early = clips[rank]
            print(f"      {target}" + ("" if is_exact(early) else f", begins {early:.1f} s early (at a key frame)"))
    if arguments.page is not None:
        print(f"page: {arguments.page}")
