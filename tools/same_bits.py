"""Compares what two revisions compute, to the bit: `python tools/same_bits.py REV [REV2]`; REV2: the working tree.

Both are built (the extensions are kept under build/same_bits), and tools/probe/probe.py is run with each: every
operator and 60 steps of GaLoreAdamW, at every instruction-set level of this machine, with 1 and with 2 threads. What
differs is printed, and the status is then 1. A call that only one of the revisions knows is named, and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from report import ROOT
from same_bits_trees import package

PROBE = ROOT / "tools/probe/probe.py"
THREADS = ("1", "2")

Hashes = dict[str, str]  # of the calls, by name
Results = dict[str, Hashes]  # "avx2, 1 thread": hashes


class Comparison(NamedTuple):
    """Names of calls, each with the places (level and threads) where it is so."""

    compared: int
    differ: dict[str, list[str]]
    only_old: dict[str, list[str]]
    only_new: dict[str, list[str]]


def compare(old: Results, new: Results) -> Comparison:
    """Call by call, at every place that both have."""
    found = Comparison(0, {}, {}, {})
    compared = 0
    for place in (place for place in old if place in new):
        before, after = old[place], new[place]
        compared += len(before.keys() & after.keys())
        for name in [*before, *(name for name in after if name not in before)]:
            if name not in after:
                found.only_old.setdefault(name, []).append(place)
            elif name not in before:
                found.only_new.setdefault(name, []).append(place)
            elif before[name] != after[name]:
                found.differ.setdefault(name, []).append(place)
    return found._replace(compared=compared)


def lines(found: Comparison, old: str, new: str, places: int) -> Iterable[str]:
    """What is printed of a comparison."""
    for name, where in sorted(found.differ.items()):
        everywhere = len(where) == places
        yield f"differs: {name} ({'everywhere' if everywhere else '; '.join(where)})"
    for revision, names in ((old, found.only_old), (new, found.only_new)):
        yield from (f"only in {revision}: {name}" for name in names)
    yield f"same_bits: {found.compared} results at {places} places: {len(found.differ) or 'no'} calls differ"


def probed(folder: Path) -> Results:
    """The hashes of the package in `folder`, by place."""
    results: Results = {}
    for level in _levels(folder):
        for threads, hashes in json.loads(_python(folder, level, str(PROBE), str(folder), *THREADS)).items():
            results[f"{level}, {threads} thread{'s' if threads != '1' else ''}"] = hashes
    return results


def _levels(folder: Path) -> list[str]:
    """Of this machine, as the package says."""
    levels: list[str] = json.loads(_python(folder, "", "-m", "lowrank_core", "info", "--json"))["instruction_sets"][
        "available"
    ]
    return levels


def _python(folder: Path, level: str, *arguments: str) -> str:
    """What Python prints with the package in `folder`. Without `site`, whose hook of an editable installation would
    come first; the packages that are installed are found all the same."""
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *installed]),
        "LOWRANK_CORE_ISA": level,
        "MKL_CBWR": "COMPATIBLE",  # the same bits of torch's products in every run
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave a busy machine to others
    }
    done = subprocess.run([sys.executable, "-S", *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"same_bits: the probe of {folder} failed at level {level or 'default'}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="REV")
    parser.add_argument("new", metavar="REV2", nargs="?", help="the working tree, if left out")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no temporary worktree stays behind
    old, new = (probed(package(revision)) for revision in (options.old, options.new))
    found = compare(old, new)
    for place in old.keys() ^ new.keys():
        print(f"same_bits: only one of the revisions has {place}")
    print("\n".join(lines(found, options.old, options.new or "the working tree", len(old.keys() & new.keys()))))
    return 1 if found.differ or not found.compared else 0


if __name__ == "__main__":
    sys.exit(main())
