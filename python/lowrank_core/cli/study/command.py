"""The command `lowrank-core train --optimizer all`."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import claimed
from lowrank_core.cli.options import flag
from lowrank_core.cli.parser import SAVE_EVERY
from lowrank_core.cli.stop import StopRequest

if TYPE_CHECKING:
    from lowrank_core.cli.study.stages import Study
    from lowrank_core.cli.study.trial import Trial

_NOTE = b"\nstopping; finished runs are kept\n"


def run(options: argparse.Namespace) -> int:
    """Makes the runs that are missing in `--out`, for `--hours`, and writes the table of those that are there.

    Returns 0, or 129, 130 or 143 if a signal ended it; every run that was finished is kept.
    """
    _refuse_others(options)
    from lowrank_core.cli.study.page import RUNS, write_page
    from lowrank_core.cli.study.recheck import recheck
    from lowrank_core.cli.study.stages import Study
    from lowrank_core.cli.study.store import Store

    folder = Path(options.out)
    with claimed(folder):
        (folder / RUNS).mkdir(exist_ok=True)
        if hasattr(options, "time"):
            return _measure_seconds(Study(Store(folder / RUNS, past=True)), options.time, folder)
        study = Study(Store(folder / RUNS))
        with StopRequest(_NOTE) as stop:
            if hasattr(options, "recheck"):
                recheck(study.store, stop=lambda: stop.signum is not None, tell=print)
            failed = complete(study, stop, getattr(options, "hours", None))
        left = sum(1 for _ in study.missing())
        print(f"wrote {write_page(folder)}")
    if failed:
        raise CliError(f"{len(failed)} runs failed, the first is {failed[0]}; what they said is above")
    if left:
        print(f"go on with: lowrank-core train --optimizer all --out {options.out}")
    return stop.exit_code if stop.signum is not None else 0


def _measure_seconds(study: Study, name: str, folder: Path) -> int:
    from lowrank_core.cli.study.page import write_page
    from lowrank_core.cli.study.seconds import write_seconds

    size = study.small if name == study.small.name else study.large
    print(f"wrote {write_seconds(study, size, folder)}")
    print(f"wrote {write_page(folder)}")
    return 0


def complete(study: Study, stop: StopRequest, hours: float | None) -> list[str]:
    """Makes what `study` lacks, until `hours` have passed; returns the names of the runs that failed."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from lowrank_core.cli.study.pool import finish
    from lowrank_core.cli.study.store import decided_by

    deadline = time.monotonic() + 3600 * hours if hours is not None else float("inf")
    failed: list[str] = []

    def next_trial(taken: set[str]) -> Trial | None:
        return next((trial for trial in study.missing() if trial.name not in taken), None)

    def stopped() -> bool:
        return stop.signum is not None

    made = len({trial.name for trial in study.wanted() if study.store.find(trial) is not None})
    ended = finish(next_trial, decided_by, study.store.folder, over=lambda: time.monotonic() >= deadline, stop=stopped)
    with tqdm(total=study.most_runs(), initial=made, unit="run", disable=None) as bar:
        for trial, good in ended:
            study.store.forget(trial)
            if not good:
                failed.append(trial.name)
                continue
            bar.update()
            loss = study.record(trial)["val_loss"]
            tqdm.write(f"{trial.name}  {'diverged' if loss is None else f'{loss:.4f}'}")
    return failed


def _refuse_others(options: argparse.Namespace) -> None:
    """Refuses what has no meaning here: model, text and work are the same for everybody.

    Raises:
      CliError: naming the first such option.
    """
    given = [item.name for item in fields(TrainConfig) if hasattr(options, item.name) and item.name != "optimizer"]
    given += [name for name in ("resume", "overwrite") if getattr(options, name)]
    given += ["threads"] if options.threads is not None else []
    given += ["save_every"] if options.save_every != SAVE_EVERY else []
    if given:
        raise CliError(
            f"`{flag(given[0])}` must come with one optimizer, got `--optimizer all`, whose runs have options of their "
            "own and go on by themselves; leave it out"
        )
