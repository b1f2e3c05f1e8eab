"""Writes docs/results/optimizers.md from the run files beside it, and its short table into docs/optimizers.md.

python tools/measured_pages.py [--check]     # with --check nothing is written; a page that differs is named
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from lowrank_core.cli.study import tables
from lowrank_core.cli.study.page import PAGE, RUNS, read_seconds, text_of
from lowrank_core.cli.study.stages import Study
from lowrank_core.cli.study.store import Store

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
BLOCK = re.compile(f"{BEGIN}.*{END}", re.DOTALL)


def pages(docs: Path) -> dict[Path, str]:
    """What the pages must hold, by path."""
    results = docs / "results"
    study, timing = Study(Store(results / RUNS, past=True)), read_seconds(results)
    choice = docs / "optimizers.md"
    short = tables.in_short(study, timing.get("sizes", {}))
    return {
        results / PAGE: text_of(study, timing),
        choice: BLOCK.sub(lambda _: f"{BEGIN}\n\n{short}\n\n{END}", choice.read_text(encoding="utf-8"), count=1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differ = [path for path, text in pages(DOCS).items() if not path.exists() or path.read_text("utf-8") != text]
    for path, text in pages(DOCS).items():
        if path in differ and not check:
            path.write_text(text, encoding="utf-8")
        if path in differ:
            print(f"{'differs from the run files: ' if check else 'wrote '}{path.relative_to(DOCS.parent)}")
    return 1 if check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
