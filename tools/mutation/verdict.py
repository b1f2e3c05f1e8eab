"""What a run found: whether the tests that caught mutants pass without one, and the page of results."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from mutation.copies import Copy
from mutation.ledger import Record, proof

BAR, MOST_EQUIVALENT = 0.95, 0.05
_NOT_CAUGHT = ("survived", "unsettled")
_OPEN = {"survived": "**it can be: a test is missing**", "unsettled": "not settled"}
_CHUNK = 200  # tests named on one command line


def unsound(found: Iterable[Record], make: Callable[[], AbstractContextManager[Copy]]) -> list[str]:
    """Of the tests that caught a mutant, those that fail in a copy without one: they prove nothing."""
    tests = sorted({one["by"] for one in found if one["outcome"] == "caught" and ".py" in one["by"]})
    wrong: list[str] = []
    if tests:
        with make() as copy:
            for first in range(0, len(tests), _CHUNK):
                rest = tests[first : first + _CHUNK]
                while rest and (trial := copy.pytest(rest)).caught:
                    wrong.append(trial.by)
                    if trial.by not in rest:  # nothing that could be left out
                        break
                    rest.remove(trial.by)
    return wrong


def counted(found: Iterable[Record]) -> list[Record]:
    """Those that are mutants: what does not compile is none."""
    return [one for one in found if one["outcome"] != "stillborn"]


def summary(found: Iterable[Record]) -> str:
    """One line."""
    mutants = counted(found)
    ends = Counter(_end(one) for one in mutants)
    others = len(mutants) - ends["equivalent"]
    share = f"{ends['caught'] / others:.1%}" if others else "none"
    waiting = f", {ends['unsettled']} not settled" if ends["unsettled"] else ""
    return (
        f"mutate: {len(mutants)} mutants: {ends['caught']} caught, {ends['survived']} survived, {ends['equivalent']} "
        f"equivalent{waiting}; {share} of those that are not equivalent are caught"
    )


def _end(one: Record) -> str:
    return "equivalent" if one["outcome"] in _NOT_CAUGHT and proof(one) is not None else one["outcome"]


def write_page(path: Path, found: Iterable[Record], options: str) -> None:
    """docs/results/mutants.md, or the page of some files; `options` say what was drawn."""
    mutants = counted(found)
    files = sorted({one["path"] for one in mutants if one["origin"] == "drawn" and one["path"].endswith(".py")})
    rows: list[tuple[str, Callable[[Record], bool]]] = [
        ("planted by hand once, and every default of a method", lambda one: one["origin"] != "drawn"),
        *((f"drawn in {part}/", _drawn_in(part)) for part in ("optim", "adapters", "ops", "memory", "cli/study")),
        *((f"drawn in `{path}`", _of_file(path)) for path in files if "--each" in options),
        ("drawn in the headers", lambda one: one["origin"] == "drawn" and one["path"].endswith(".h")),
        *((f"drawn, kind: {kind}", _of_kind(kind)) for kind in sorted({m["kind"] for m in mutants} - {"planted"})),
    ]
    lines = [
        "# Mutants",
        "",
        "Written by `make mutate`, which changes one place of the source after the other and runs the tests that",
        "should notice. The places are drawn by a seed; `tools/mutation/python_sites.py` and",
        "`tools/mutation/header_sites.py` say which there are and what is left out.",
        "",
        f"`python tools/mutate.py {options}` at commit {_commit(path.parent)}, "
        f"{datetime.date.today()}, {_processor()}, Python {platform.python_version()}.",
        "",
        summary(mutants).removeprefix("mutate: ")
        + f" (bars: {BAR:.0%} caught, at most {MOST_EQUIVALENT:.0%} equivalent).",
        "",
        "| mutants | number | caught | survived | equivalent | not settled |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(name, [one for one in mutants if chosen(one)]) for name, chosen in rows),
        _row("**all**", mutants),
        "",
        "## Not caught",
        "",
        "A mutant is not settled where the nearest tests pass with it and the wider ones were not run yet.",
        "",
        *_survivors([one for one in mutants if one["outcome"] in _NOT_CAUGHT]),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _drawn_in(part: str) -> Callable[[Record], bool]:
    return lambda one: one["origin"] == "drawn" and f"/lowrank_core/{part}/" in one["path"]


def _of_file(path: str) -> Callable[[Record], bool]:
    return lambda one: one["path"] == path


def _of_kind(kind: str) -> Callable[[Record], bool]:
    return lambda one: one["kind"] == kind


def _row(name: str, mutants: list[Record]) -> str:
    ends = Counter(_end(one) for one in mutants)
    numbers = (len(mutants), *(ends[end] for end in ("caught", "survived", "equivalent", "unsettled")))
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def _survivors(mutants: list[Record]) -> list[str]:
    if not mutants:
        return ["None."]
    table = ["| where | mutant | why no test can catch it |", "| --- | --- | --- |"]
    for one in sorted(mutants, key=lambda one: (one["path"], one["line"])):
        change = f"`{one['before']}` → `{one['after']}`".replace("|", "\\|").replace("\n", " ⏎ ")
        table.append(f"| `{one['path']}:{one['line']}` | {change} | {proof(one) or _OPEN[one['outcome']]} |")
    return table


def _commit(folder: Path) -> str:
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=, changed since"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()
