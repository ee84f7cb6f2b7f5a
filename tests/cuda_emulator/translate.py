"""CUDA C++ as C++ that the emulator runs: launches, shared memory and the dispatch key are rewritten, nothing else.

- ``kernel<A><<<grid, block, shared, stream>>>(x)`` calls ``cuda_emulator::launch`` with a function that calls
  ``kernel<A>``;
- ``__shared__ T a[n], b;`` becomes static and is poisoned when a block comes by for the first time;
  ``extern __shared__ T c[];`` becomes a pointer to the launch's shared memory;
- ``STABLE_TORCH_LIBRARY_IMPL(library, CUDA, m)`` registers for the CPU.

What all of this needs is in ``include/``. Lines keep their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

OPEN, CLOSE = "([{", ")]}"
ALIGNMENT = r"(?:alignas|__align__)\s*\(\s*(\w+)\s*\)"
Edit = tuple[int, int, str]
"""What lies between two places of the text becomes something else."""


class TranslationError(Exception):
    """Something that this file does not know how to rewrite."""


def blanked(text: str) -> str:
    """The same text with spaces for comments and for what strings and characters hold."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])\'', blank, text, flags=re.S)


def closing(code: str, start: int) -> int:
    """Place of the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(code)):
        depth += (code[place] in OPEN) - (code[place] in CLOSE)
        if depth == 0:
            return place
    raise TranslationError("a bracket is never closed")


def split(declared: str) -> list[str]:
    """``declared`` at its commas that no bracket encloses."""
    parts, depth = [""], 0
    for character in declared:
        depth += (character in OPEN + "<") - (character in CLOSE + ">")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def kernel_before(code: str, place: int) -> int:
    """Where the name begins, template arguments and all, that ends at ``place``."""
    at = len(code[:place].rstrip())
    if code[at - 1] == ">":
        depth = 0
        while at > 0:
            at -= 1
            depth += (code[at] == ">") - (code[at] == "<")
            if depth == 0:
                break
    name = re.search(r"[\w:]+\s*$", code[:at])
    if name is None:
        raise TranslationError(f"line {code.count(chr(10), 0, place) + 1}: a launch of what is not a name")
    return name.start()


def launches(text: str, code: str) -> Iterator[Edit]:
    """Between the kernel's name and the bracket that opens its arguments."""
    for found in re.finditer("<<<", code):
        start, end = kernel_before(code, found.start()), code.index(">>>", found.end())
        opened = code.index("(", end)
        name = " ".join(text[start : found.start()].split())
        has_arguments = code[opened + 1 : closing(code, opened)].strip() != ""
        address = (
            f"[&](auto any) -> const void* {{ if constexpr (requires {{ cuda_emulator::address(any, {name}); }}) "
            f"return cuda_emulator::address(any, {name}); else return nullptr; }}(0)"
        )
        rewritten = (
            f'cuda_emulator::launch(cuda_emulator::Launch("{name}", {address}, {text[found.end() : end]}), '
            f"[&](auto... a) {{ {name}(a...); }}{',' if has_arguments else ''}"
        )
        lost = text.count("\n", start, opened) - rewritten.count("\n")
        yield start, opened + 1, rewritten + "\n" * lost


def shared_memory(text: str, code: str) -> Iterator[Edit]:
    for found in re.finditer(r"(extern\s+)?__shared__\s([^;]*);", code):
        declared = text[found.start(2) : found.end(2)]
        line = code.count("\n", 0, found.start()) + 1
        if found.group(1):
            alignment = re.search(ALIGNMENT, declared)
            parts = re.fullmatch(r"\s*(.*?)(\w+)\s*\[\s*\]\s*", re.sub(ALIGNMENT, "", declared), re.S)
            if parts is None:
                raise TranslationError(f"line {line}: extern __shared__ of what is not an array")
            pointer = f"static_cast<{parts[1].strip()}*>"
            rewritten = (
                f"auto* {parts[2]} = {pointer}(cuda_emulator::dynamic_shared({alignment[1] if alignment else 16}));"
            )
        else:
            if "{" in declared or "=" in declared:
                raise TranslationError(f"line {line}: __shared__ with a type of its own or a value")
            names = [re.search(r"(\w+)\s*(?:\[.*)?$", part.strip(), re.S) for part in split(declared)]
            poison = " ".join(f"cuda_emulator::poison_shared(&{n[1]}, sizeof({n[1]}));" for n in names if n)
            alignments = "".join(f"alignas({a}) " for a in re.findall(ALIGNMENT, declared))
            rewritten = f"{alignments}static {re.sub(ALIGNMENT, '', declared).strip()}; {poison}"
        lost = text.count("\n", found.start(), found.end()) - rewritten.count("\n")
        yield found.start(), found.end(), rewritten + "\n" * lost


def dispatch_key(code: str) -> Iterator[Edit]:
    for found in re.finditer(r"STABLE_TORCH_LIBRARY_IMPL\(\s*\w+\s*,\s*(CUDA)\b", code):
        yield found.start(1), found.end(1), "CPU"


def translate(text: str) -> str:
    code = blanked(text)
    if ptx := re.search(r"\basm\b(?:\s+volatile)?\s*\(", code):
        line = code.count("\n", 0, ptx.start()) + 1
        raise TranslationError(f"line {line}: inline PTX; mma.h and cuda_pipeline.h are what the emulator knows")
    for start, end, new in sorted(
        [*launches(text, code), *shared_memory(text, code), *dispatch_key(code)], reverse=True
    ):
        text = text[:start] + new + text[end:]
    return text
