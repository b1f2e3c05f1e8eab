"""Runs every check of the project and writes what came of it: `python tools/test_all.py`, that is, `make test-all`.

Continuous integration runs one Python, one instruction-set level and the newest libraries. This runs the rest as well,
goes on after a failure, and writes docs/results/test-all.md: each stage with its outcome, commit and machine. It takes
more than an hour on two cores. What is finished is written at once; `--only STAGE...` runs some stages and leaves the
rows of the others, which name their own commits. The status is 1 if a stage failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from report import ROOT

RESULT = ROOT / "docs/results/test-all.md"
ROWS = "test_all.json"  # beside it: the same as data
SUMMARY = re.compile(r"^=+ (.*\d+ (?:passed|failed|error).*?) =+$", re.MULTILINE)


class Stage(NamedTuple):
    """One command, what it needs of the machine, and what it is about."""

    name: str
    command: str
    about: str
    needs: str = ""
    environment: dict[str, str] = {}  # noqa: RUF012  (read only)


class Outcome(NamedTuple):
    stage: Stage
    result: str  # "passed", "failed", "not run: ..."
    seconds: float
    summary: str


def levels() -> list[str]:
    """The instruction-set levels below the best one, which the stage "test" runs at."""
    from lowrank_core import _core

    return list(_core.isa_levels())[:-1]


def stages() -> list[Stage]:
    """In the order in which they run."""
    ci = {"CI": "true"}  # two processes, nothing optional left out
    kernels = "make test ARGS='tests/ops tests/optim'"
    small_run = "make train OUT=build/test-all-train ARGS='--overwrite --steps 20'"
    return [
        Stage("test", "make test", "C++ and Python tests", "", ci),
        Stage("lint", "make -k lint", "formats, types, stubs, the house"),
        *(Stage(level, kernels, "the same at this level", "", {**ci, "LOWRANK_CORE_ISA": level}) for level in levels()),
        Stage("emulated", "make emulated", "CUDA kernels on an emulated GPU", "", ci),
        Stage("sanitize", "make sanitize", "C++ tests under ASan and UBSan"),
        Stage("aarch64", "make aarch64", "cross-compiled, tests under qemu", "aarch64-linux-gnu-g++"),
        Stage("hosting", "make hosting", "every tuner of PEFT", "", ci),
        Stage("train", small_run, "the first command of README"),
        Stage("floor", "make floor", "the oldest torch and NumPy"),
        Stage("wheels", "make wheels", "a wheel for each Python found, tried in an empty environment"),
    ]


def run(stage: Stage) -> Outcome:
    """Runs `stage`, its output on the terminal and in build/test-all/<name>.log."""
    print(f"\n==== {stage.name}: {stage.command} ====", flush=True)
    if stage.needs and not shutil.which(stage.needs):
        return Outcome(stage, f"not run: {stage.needs} is missing", 0.0, "")
    log = ROOT / "build/test-all" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # A make of its own: the variables of the one that started this are not for the stages.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    began = time.monotonic()
    with log.open("w") as file, subprocess.Popen(
        ["bash", "-c", stage.command], cwd=ROOT, env={**environment, **stage.environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
    result = "passed" if process.returncode == 0 else "failed"
    return Outcome(stage, result, time.monotonic() - began, summary_of(log.read_text()))


def summary_of(log: str) -> str:
    """pytest's last line in `log`, or ""."""
    found: list[str] = SUMMARY.findall(log)
    return found[-1] if found else ""


def recorded(outcome: Outcome, tested: str) -> None:
    """Writes the row of `outcome` at commit `tested`, and the page with all rows."""
    path = RESULT.with_name(ROWS)
    rows: dict[str, dict[str, str | float]] = json.loads(path.read_text()) if path.exists() else {}
    rows[outcome.stage.name] = {
        "about": outcome.stage.about,
        "result": outcome.result,
        "minutes": round(outcome.seconds / 60, 1),
        "pytest": outcome.summary,
        "commit": tested,
        "date": str(datetime.now(timezone.utc).date()),
        "machine": f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    path.write_text(json.dumps(rows, indent=1) + "\n")
    RESULT.write_text(page(rows))


def page(rows: dict[str, dict[str, str | float]]) -> str:
    """The result as Markdown, in the order of the stages."""
    lines = [
        "# Every check",
        "",
        "By `make test-all`. A stage may be older than another one: each names the commit that it was run at.",
        "",
        "| stage | what | result | minutes | pytest | commit | date | machine |",
        "| --- | --- | --- | ---: | --- | --- | --- | --- |",
    ]
    for stage in stages():
        row = rows.get(stage.name, {"about": stage.about, "result": "never run"})
        cells = [row.get(key, "") for key in ("about", "result", "minutes", "pytest", "commit", "date", "machine")]
        lines.append(f"| {stage.name} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join([*lines, ""])


def cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def commit() -> str:
    """The commit that is checked out; "with changes" where files other than results differ from it."""
    hash_, changes = (
        subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", ":!docs/results"])
    )
    return f"{hash_} with changes" if changes else hash_


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = stages()
    parser.add_argument("--only", nargs="+", metavar="STAGE", choices=[stage.name for stage in every])
    only = parser.parse_args().only
    failed = False
    for stage in every:
        if only and stage.name not in only:
            continue
        before = commit()
        outcome = run(stage)
        after = commit()
        recorded(outcome, before if before == after else f"{before}, {after} at its end")
        failed |= outcome.result == "failed"
    print("\n" + RESULT.read_text())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
