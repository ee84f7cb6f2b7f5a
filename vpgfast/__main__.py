"""``vpgfast COMMAND ...``: the same as ``python -m vpgfast.COMMAND ...``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from vpgfast.command import command

COMMANDS = {
    "find": "find when something happens in your videos, without training",
    "extract": "make features of your own videos, as all other commands read them",
    "annotations": "tell what a file of your own annotations holds, before anything is trained on it",
    "train": "train a method and evaluate it; without arguments SeqPAN on a corpus made here",
    "evaluate": "evaluate a checkpoint beside the baselines and the swapped-sentence control",
    "ground": "find in a video when sentences happen",
    "search": "find in a collection the videos that a paragraph describes, and its moments in them",
    "serve": "serve a page that finds moments in a folder of videos as one types",
    "ablate": "repeat a run over seeds, or run a paper's ablation tables and check its claims",
    "doctor": "show versions, what is built, and which backend each op uses",
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vpgfast COMMAND ...",
            "",
            *lines,
            "",
            "vpgfast COMMAND --help says more; vpgfast --version names versions and kernels.",
        ]
    )


@command
def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r} ({hint})", file=sys.stderr)
        return 2
    code: int = import_module(f"vpgfast.{name}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
