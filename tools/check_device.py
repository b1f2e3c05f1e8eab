"""Checks that tests/cuda puts every function that a header states for host and device (LRC_HD) into a kernel.

By name and number: what the headers define three times is called three times, or more often, in tests/cuda.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from report import finish, root_argument

HEADERS, KERNELS = "cpp/include/lowrank_core", "tests/cuda"
SILENT = re.compile(r"//[^\n]*|/\*.*?\*/|^[ \t]*#[^\n]*", re.DOTALL | re.MULTILINE)  # comments and directives
MARK = re.compile(r"\bLRC_HD\b")
DEFINITION = re.compile(r"\bLRC_HD\b[^;{}()]*?\b(operator\(\)|\w+)\s*\(")
CALL = re.compile(r"\b(operator\(\)|\w+)\s*(?:<[^;{}()]*?>)?\s*\(")


def code(path: Path) -> str:
    return SILENT.sub("", path.read_text(encoding="utf-8"))


def problems(root: Path) -> Iterator[str]:
    defined: Counter[str] = Counter()
    called: Counter[str] = Counter()
    for path in sorted((root / HEADERS).rglob("*.h")):
        text = code(path)
        names = DEFINITION.findall(text)
        defined.update(names)
        if len(names) != len(MARK.findall(text)):
            yield f"{path.relative_to(root)} marks by LRC_HD what is no function; mark functions"
    for path in sorted((root / KERNELS).glob("*.cu")):
        called.update(CALL.findall(code(path)))
    for name, count in sorted(defined.items()):
        if called[name] < count:
            yield f"{name}() stands {count} times for host and device, in {KERNELS} {called[name]} times; add a call"


if __name__ == "__main__":
    sys.exit(finish(problems(root_argument()), "functions for host and device"))
