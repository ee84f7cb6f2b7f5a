"""``python -m vpgfast.annotations check FILE [--videos FOLDER | --features FILE] [--picture PNG]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpgfast.command import command

PROBLEMS = 1
"""Exit code where the file has problems that training would stop at."""
_SHOWN = 20  # problems


@command
def main(argv: Sequence[str]) -> int:
    """Command line of ``vpgfast annotations``."""
    parser = argparse.ArgumentParser(
        prog="python -m vpgfast.annotations",
        description="Tell what a file of annotations of your own holds: counts, lengths, words, problems, a picture.",
        epilog="Files: CSV or TSV with the columns video,start,end,sentence; JSON lines as QVHighlights has them; JSON "
        "as\nActivityNet Captions has it. docs/own_videos.md shows them.\n\nExit code 0: training can read it; 1: it "
        "has problems; 2: it can't be read at all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("check",))
    parser.add_argument("file", type=Path, help=".csv, .tsv, .jsonl or .json, plain or .gz")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--videos", type=Path, help="folder of the videos: are they all there, and how long are they?")
    source.add_argument("--features", type=Path, help="feature file or folder, for the same")
    parser.add_argument("--picture", type=Path, help="a PNG of where the moments lie; default: FILE.png beside FILE")
    parser.add_argument("--no-picture", action="store_true")
    arguments = parser.parse_args(argv)

    # What they import comes after --help.
    from vpgfast.annotations.picture import draw
    from vpgfast.annotations.summary import durations_of, summarize
    from vpgfast.data.annotations.own import read
    from vpgfast.files import output_file

    if arguments.picture is not None:
        output_file(arguments.picture, "--picture")
    durations = durations_of(arguments.videos, arguments.features)
    content = read(arguments.file, durations.get, needs_duration=bool(durations))
    beside = arguments.file.with_name(arguments.file.name + ".png")
    picture = None if arguments.no_picture or not content.paragraphs else arguments.picture or beside
    if picture is not None:
        draw(content.paragraphs, picture, arguments.file.name)
    print(summarize(content, durations, arguments.file, arguments.videos or arguments.features))
    if content.problems:
        print(f"\n{len(content.problems)} problem{'s' * (len(content.problems) > 1)}:")
        for problem in content.problems[:_SHOWN]:
            print(f"  {problem}")
        if len(content.problems) > _SHOWN:
            print(f"  and {len(content.problems) - _SHOWN} more")
        if content.hint:
            print(f"  {content.hint}")
    if picture is not None:
        print(f"\nwhere the moments lie: {picture}")
    return PROBLEMS if content.problems or not content.rows else 0
