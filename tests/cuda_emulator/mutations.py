"""What the emulated tests notice: faults are planted in the CUDA kernels one by one, and the op's tests run over each.

    python tests/cuda_emulator/mutations.py [--faults N] [--seed S] [--only NAME]

Every barrier (``__syncthreads``, ``__syncwarp``) of every kernel is taken out in turn, and N faults of other kinds are
drawn for every file: bounds, offsets, factors, masks and sums. A line is printed for each: noticed, and how; or not,
which means that the barrier is redundant or that a test is missing. Ends with status 1 if there is a barrier whose
removal nothing notices.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cuda_emulator.build import ROOT, Build
from cuda_emulator.translate import blanked

# Races first: they are what notices by itself that a barrier is gone.
MODES = ("races", "plain")
NOTICED, UNNOTICED, NOT_COMPILED = "noticed", "NOT NOTICED", "not compiled"
BARRIER_OUT = "barrier taken out"
BARRIER = re.compile(r"\b(?:__syncthreads|__syncwarp)\(\w*\);")
FAULTS = {
    "bound": (r"(?<=[\w)\]]) < (?=\w)", " <= "),
    "bound below": (r" >= 0\b", " > 0"),
    "offset": (r" \+ 1\b(?!\.)", " + 0"),
    "offset down": (r" - 1\b(?!\.)", " - 0"),
    "lane": (r"% kWarp\b", "% (kWarp - 1)"),
    "warp": (r"\* kWarp\b", "* (kWarp - 1)"),
    "accumulation": (r"(?m)^(\s+[\w.\[\]]+) \+= ", r"\1 = "),
    "mask": (r"\b0xffffffffu\b", "0x7fffffffu"),
    "condition": (r" && (?=\w)", " || "),
    "first": (r"== 0\b", "== 1"),
    "shuffle": (r"__shfl_(?:down|xor)_sync\((\w+), (\w+), \w+\)", r"__shfl_sync(\1, \2, 0)"),
    "stride": (r"\+= index_stride\(\)", "+= index_stride() + 1"),
}
"""Kind -> what is replaced, and by what."""


@dataclass(frozen=True)
class Mutant:
    file: Path
    start: int
    end: int
    new: str
    kind: str

    def text(self) -> str:
        text = self.file.read_text()
        return text[: self.start] + self.new + text[self.end :]

    def __str__(self) -> str:
        text = self.file.read_text()
        line = text.count("\n", 0, self.start) + 1
        return f"{self.file.name}:{line}: {self.kind}: {text.splitlines()[line - 1].strip()[:90]}"


def device_code(text: str) -> str:
    """Blank but for the functions that run on the device."""
    code = blanked(text)
    kept = [" "] * len(code)
    for found in re.finditer(r"__(?:global|device)__[^;{]*?\)\s*(?:const\s*)?\{", code):
        depth = 0
        for place in range(found.end() - 1, len(code)):
            depth += (code[place] == "{") - (code[place] == "}")
            if depth == 0:
                kept[found.end() : place] = code[found.end() : place]
                break
    return "".join(kept)


def mutants(file: Path, faults: int, seed: int) -> Iterator[Mutant]:
    code = device_code(file.read_text())
    for found in BARRIER.finditer(code):
        yield Mutant(file, found.start(), found.end(), ";", BARRIER_OUT)
    planted = [
        Mutant(file, found.start(), found.end(), found.expand(new), kind)
        for kind, (old, new) in FAULTS.items()
        for found in re.finditer(old, code)
    ]
    chance = random.Random(f"{file.name} {seed}")
    yield from sorted(chance.sample(planted, min(faults, len(planted))), key=lambda mutant: mutant.start)


class Trial:
    """A copy of the tree, and the library of each mode as it is without faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        os.environ.setdefault("VPGFAST_EMULATOR_CACHE", str(ROOT / "build" / "cuda_emulator"))
        self.tree, self.seed = folder, seed
        self.known: dict[tuple[str, str], list[str]] = {}
        for name in ("_build", "csrc", "tests", "triton_kernels", "vpgfast"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def library(self, mode: str, changed: dict[str, str]) -> str | None:
        """Builds it with other texts for some files; says why it could not."""
        for name in sorted(path.name for path in (ROOT / "csrc/cuda").iterdir()):
            text = changed.get(name, (ROOT / "csrc/cuda" / name).read_text())
            target = self.tree / "csrc/cuda" / name
            if target.read_text() != text:
                target.write_text(text)
        build = Build(self.tree, mode)
        if changed:  # objects that are of no use later
            build.new_objects = self.tree
        try:
            objects = [*build.emulator(), build.module(), *build.kernels().values()]
        except SystemExit as error:
            return str(error)
        build.link(objects, self.tree / "vpgfast/_C.abi3.so")
        return None

    def run(self, mode: str, words: str, seconds: int, *options: str) -> subprocess.CompletedProcess[str]:
        poison = "0xff" if mode == "plain" else "0x3c"
        environment = os.environ | {"VPGFAST_EMULATED": mode, "PYTHONPATH": "tests", "VPGFAST_FUZZ_CASES": "25"}
        environment |= {"VPGFAST_EMULATOR_SEED": str(self.seed), "VPGFAST_EMULATOR_POISON": poison}
        command = [sys.executable, "-m", "pytest", "tests/cuda_emulator/check_kernels.py", "tests/ops", "tests/nn"]
        command += ["-p", "cuda_emulator.selection", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-q"]
        command += ["--capture=no", "-m", "not slow and not nightly and not gpu", "-k", words, *options]
        return subprocess.run(
            command, cwd=self.tree, env=environment, capture_output=True, text=True, errors="replace", timeout=seconds
        )

    def learn(self, mode: str, words: str) -> None:
        """Notes the tests that fail without a fault."""
        if (mode, words) not in self.known:
            trouble = self.library(mode, {})
            assert trouble is None, trouble
            done = self.run(mode, words, 1800)
            assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
            self.known[mode, words] = re.findall(r"^FAILED (\S+::.*?)(?: - .*)?$", done.stdout, re.M)

    def test(self, mode: str, words: str, seconds: int) -> str | None:
        """How the tests notice what is in the library, if they do."""
        left_out = self.known[mode, words]
        try:
            done = self.run(mode, words, seconds, "-x", *(f"--deselect={test}" for test in left_out))
        except subprocess.TimeoutExpired:
            return "runs for ever"
        if done.returncode == 0:
            return None
        said = re.findall(r"cuda_emulator: .*|^E  .*|^FAILED .*|^ERROR .*", done.stdout + done.stderr, re.M)
        return (said or [f"status {done.returncode}"])[0][:160]


def words_for(mutant: Mutant) -> str:
    """The tests of the op that a file is for; in a header, of the first ops that use the function, or the header."""
    if mutant.file.suffix == ".cu":
        words = mutant.file.stem
        while not (ROOT / f"tests/ops/test_{words}.py").exists():  # a second file of an op
            words = words.rpartition("_")[0]
        return words
    before = blanked(mutant.file.read_text())[: mutant.start]
    functions = re.findall(r"__(?:global|device)__[^;{]*?\b(?!__launch_bounds__|sizeof)(\w+)\(", before)
    sources = {path.stem: path.read_text() for path in sorted(mutant.file.parent.glob("*.cu"))}
    for name in (rf"\b{functions[-1]}\b" if functions else "$^", re.escape(f'"cuda/{mutant.file.name}"')):
        if users := [stem for stem, text in sources.items() if re.search(name, text)]:
            return " or ".join(users[:3])
    return "test_fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=5, help="drawn for every file (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="files whose name has this in it")
    parser.add_argument("--seconds", type=int, default=240, help="of a run of the tests, at most")
    given = parser.parse_args()
    counts = {NOTICED: 0, UNNOTICED: 0, NOT_COMPILED: 0}
    silent_barriers = 0
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder) / "tree", given.seed)
        for file in sorted((ROOT / "csrc/cuda").glob("*.[ch]*")):
            for mutant in mutants(file, given.faults, given.seed) if given.only in file.name else ():
                outcome, how, words = UNNOTICED, "", words_for(mutant)
                for mode in MODES:
                    trial.learn(mode, words)
                    if trouble := trial.library(mode, {file.name: mutant.text()}):
                        outcome, how = NOT_COMPILED, re.sub(r"(?s).*?error: (.*?)\n.*", r"\1", trouble)
                        break
                    if said := trial.test(mode, words, given.seconds):
                        outcome, how = NOTICED, f"{mode}: {said}"
                        break
                counts[outcome] += 1
                silent_barriers += outcome == UNNOTICED and mutant.kind == BARRIER_OUT
                print(f"{outcome:12} {mutant}\n{'':12} {how}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    print(f"{silent_barriers} barriers are redundant, or a test is missing")
    return int(silent_barriers > 0)


if __name__ == "__main__":
    sys.exit(main())
