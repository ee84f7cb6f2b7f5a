"""Features of a folder of videos on a Ray cluster: as ``python -m vpgfast.extract``, with Ray handing out the videos.

    pip install 'vpgfast[ray]'
    python examples/ray_extract.py /disk/videos --encoder clip:/disk/clip -o /disk/features.h5 --workers 8 --gpus 1

Every machine must see the videos, the weights and the output under the same paths (a shared file system). A worker is
an actor that loads the encoder once; Ray gives it the next video when it has done one, so long videos hold nobody up.
What was made before a kill is not made again.
"""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path
from typing import Any

import ray

from vpgfast.data.feature_files import FeatureStore, Source, read_stored, unfit_names
from vpgfast.data.video_folders import named_videos
from vpgfast.encoders.base import load_encoder
from vpgfast.errors import UserError
from vpgfast.extract.run import Job, choose_device, encode_videos, versions


class Worker:
    """Encodes one video after the other into the output's folder of parts."""

    def __init__(self, spec: str, preset: str | None, output: str) -> None:
        self.encoder = load_encoder(spec, preset, choose_device("auto", 0))
        about = {"versions": versions()}
        # Each worker keeps a journal of its own: no two write to one file.
        self.store = FeatureStore(Path(output), self.encoder.identity(), about, rank=uuid.uuid4().hex)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        path = Path(row["path"])
        try:
            job = Job(row["name"], self.encoder.clips(path), Source.of(path))
            failed = encode_videos(self.encoder, self.store, [job])
        except (UserError, OSError) as error:
            failed = {row["name"]: str(error)}
        return {"name": row["name"], "failed": failed.get(row["name"], "")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--encoder", required=True, metavar="SPEC")
    parser.add_argument("--preset")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="actors, each with the encoder (default 2)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs a worker (default 0)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs a worker (default 1)")
    arguments = parser.parse_args()

    videos = {name: path.resolve() for name, path in named_videos(arguments.videos).items()}
    output = arguments.output.resolve()
    done = read_stored(output).done
    unfit = unfit_names(videos, done)
    left = {name: path for name, path in videos.items() if name not in unfit}
    todo = [{"name": n, "path": str(p)} for n, p in left.items() if not p.exists() or done.get(n) != Source.of(p)]
    failed = {name: f"video {videos[name]}: {why}; rename it" for name, why in unfit.items()}
    if todo:
        ray.init(ignore_reinit_error=True)
        rows = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            Worker,
            fn_constructor_args=(arguments.encoder, arguments.preset, str(output)),
            concurrency=arguments.workers,
            num_gpus=arguments.gpus,
            num_cpus=arguments.cpus,
        )
        failed |= {row["name"]: row["failed"] for row in rows.iter_rows() if row["failed"]}
        identity = load_encoder(arguments.encoder, arguments.preset).identity()
        FeatureStore(output, identity, {"versions": versions()}, rank="finish").finish()
    print(f"{output}: {len(read_stored(output).done)} videos, {len(todo) - len(failed.keys() - unfit)} of them new")
    for name, why in sorted(failed.items()):
        print(f"failed: {name}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
