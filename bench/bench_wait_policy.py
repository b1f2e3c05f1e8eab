"""Whole runs of `lowrank-core train` whose waiting threads spin or sleep, on a quiet machine and beside busy processes.

"spin" is what libgomp does where nothing is set (GOMP_SPINCOUNT=300000), "passive" what the command sets itself. A
round runs both in random order, first alone, then beside `--neighbours` processes that each keep a core busy.

    python bench/bench_wait_policy.py [--threads N] [--neighbours N] [--rounds N] [--steps N] [options of train]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _train import write
from lowrank_core.cli import waiting

POLICIES = {"spin": ("GOMP_SPINCOUNT", "300000"), "passive": waiting.POLICY}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    asked, own = parser.parse_known_args()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"other work is running (load average {load:.1f}): the quiet half is not quiet")
    words = ["--threads", str(asked.threads), "--steps", str(asked.steps), "--eval-every", str(asked.steps), *own]
    rows = []
    for busy in (0, asked.neighbours):
        with neighbours(busy):
            rounds = [one_round(words) for _ in range(asked.rounds)]
        rows.append({"neighbours": busy, "rounds": rounds, **summary(rounds)})
        print(
            f"{busy} busy neighbours: " + ", ".join(f"{name} {rows[-1][name]:.4f} CPU s/step" for name in POLICIES),
            end="",
        )
        print(f"; passive takes {rows[-1]['ratio']:.2f} of that, and in all "
              f"{rows[-1]['whole_command_ratio']:.2f} of the wall clock", flush=True)  # fmt: skip
    write("wait_policy", threads=asked.threads, cores=len(os.sched_getaffinity(0)), options=words,
          load_average_before=load, policies=POLICIES, rows=rows)  # fmt: skip


def one_round(words: list[str]) -> dict[str, dict[str, float]]:
    """Both policies once, the order by chance."""
    return {name: run(POLICIES[name], words) for name in random.sample(list(POLICIES), len(POLICIES))}


def run(policy: tuple[str, str], words: list[str]) -> dict[str, float]:
    """CPU seconds of a step, all threads together, and wall-clock seconds of the whole command from start to end."""
    environment = {name: value for name, value in os.environ.items() if name not in waiting.CHOICES}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lowrank_core", "train", "--out", folder, *words]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**environment, policy[0]: policy[1]})
        whole = time.perf_counter() - started
        done: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())["runs"][0]
    return {"seconds_per_step": done["seconds_per_step"], "whole_command_s": whole}


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Median CPU seconds of a step by policy, and the medians over rounds of the ratios."""
    steps = [{name: row["seconds_per_step"] for name, row in rivals.items()} for rivals in rounds]
    return {
        **{name: median(row[name] for row in steps) for name in POLICIES},
        "ratio": median(row["passive"] / row["spin"] for row in steps),
        "whole_command_ratio": median(
            rivals["passive"]["whole_command_s"] / rivals["spin"]["whole_command_s"] for rivals in rounds
        ),
    }


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keeps `count` cores busy with processes that do nothing else."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # and ends with this process
    running = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
