"""Checks that the objects of the wide instruction-set levels export no weak symbol.

The linker keeps one of several weak copies of a function. Were it the AVX-512 one, the program would die on a CPU
without AVX-512. Argument: a build tree.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from report import finish

LEVELS = ("avx2", "avx512", "avx512bf16", "avx512amx")
# nm's letters for what the linker may take from another object: weak, weak object, unique global.
WEAK = set("WVu")
DATA_ONLY = "DW.ref."  # a pointer that exception handling needs; it holds no instruction


def weak_symbols(path: Path) -> Iterator[str]:
    table = subprocess.run(
        ["nm", "--demangle", "--defined-only", "--format=bsd", str(path)], check=True, capture_output=True, text=True
    )
    for line in table.stdout.splitlines():
        _, kind, name = line.split(maxsplit=2)
        if kind in WEAK and not name.startswith(DATA_ONLY):
            yield name


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("usage: check_symbols.py BUILD_TREE")
    tree = Path(sys.argv[1])
    objects = [path for level in LEVELS for path in tree.glob(f"CMakeFiles/lrc_{level}.dir/**/*.o")]
    if not objects:
        sys.exit(f"check_symbols: no level objects under {tree}; build first")
    found = (f"{path.relative_to(tree)} exports {name}" for path in objects for name in weak_symbols(path))
    return finish(found, f"{len(objects)} objects")


if __name__ == "__main__":
    sys.exit(main())
