"""A study of three contenders whose runs take a fraction of a second, and runs that nobody made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank_core.cli.study.contenders import ABLATIONS, ADAMW, GALORE, ONE_RATE, Contender, trial_of
from lowrank_core.cli.study.ladders import Ladder
from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.sizes import Size
from lowrank_core.cli.study.stages import Study
from lowrank_core.cli.study.store import Store, decided_by, record_of
from lowrank_core.cli.study.trial import Trial

RATES = (1e-3, 2e-3)
TINY = Size("small", dim=16, layers=1, heads=2, seq_len=16, steps=4, batch_size=2, eval_batches=2)
BIGGER = Size("large", dim=16, layers=2, heads=2, seq_len=16, steps=4, batch_size=2, eval_batches=2)


def short(row: Contender) -> Contender:
    """Two rates and nothing else to tune."""
    rates = Ladder("lr", RATES, RATES)
    return Contender(row.name, row.optimizer, {**row.start, "lr": RATES[0]}, (rates,), fixed=row.fixed)


def tiny_study(folder: Path, **more: Any) -> Study:
    """The study over `folder`, which must exist."""
    rows = tuple(map(short, (ADAMW, ONE_RATE, GALORE)))
    common = {"contenders": rows, "small": TINY, "large": BIGGER, "seeds": (1, 2), "ablations": ABLATIONS[:1]}
    return Study(Store(folder), **{**common, **more})


def faked(study: Study, trial: Trial, loss: float | None) -> None:
    """Writes the file of a run with that final loss, whose curve falls to it in a straight line from 5."""
    steps = trial.options["steps"]
    curve = [(step, None if loss is None else 5 + (loss - 5) * step / steps) for step in range(0, steps + 1)]
    result = {
        "diverged": None if loss is not None else "galore diverged at step 3", "val_loss": loss, "state_bytes": 1000,
        "peak_rss_bytes": 10**8, "val_curve": curve, "train_curve": [], "losses_sha256": f"{loss}", "cpu_seconds": 1.0,
    }  # fmt: skip
    study.store.write(trial, record_of(trial, decided_by(trial), result))


def fill(study: Study, loss: Any) -> int:
    """Fakes every run of `study`, one after the other as they are wanted; `loss` is a function of the trial."""
    count = 0
    while trial := next(study.missing(), None):
        faked(study, trial, loss(trial))
        count += 1
    return count


def made(study: Study) -> set[str]:
    """The names of the runs that are wanted and there."""
    return {trial.name for trial in study.wanted() if study.store.find(trial)}


__all__ = ["BIGGER", "RATES", "TINY", "NotMade", "faked", "fill", "made", "short", "tiny_study", "trial_of"]
