"""How a check ends: its problems, one a line, or a word on what it looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def root_argument() -> Path:
    """The tree to check: the first argument, or the one this file is part of."""
    return Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT


def finish(problems: Iterable[str], looked_at: str) -> int:
    """Prints and returns the exit status: 0 without problems, else 1."""
    name = Path(sys.argv[0]).stem
    found = sorted(problems)
    for problem in found:
        print(f"{name}: {problem}")
    print(f"{name}: {looked_at}: {len(found) or 'no'} problem{'' if len(found) == 1 else 's'}")
    return 1 if found else 0
