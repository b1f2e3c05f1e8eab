"""Tunes the optimizers of the default `lowrank-core train`, 12 runs each: option by option, from the best so far.

Every option has a ladder of values. Tried are those named here, then the best's neighbours on the ladder until both
have been tried (the best is interior), then the next option; runs that are left go to neighbours of the final best.
AdamW's first option is its rate with one rate for everything, so its best among those is "AdamW, one rate"; from there
embedding, head and norms get a multiple of it. GaLore has that freedom by `scale`. The seed is none of those that
bench/train_pairs.py compares on. Losses are validation losses in nats per byte after the last step; the defaults of the
command line are the best options found here.

    nice python bench/train_sweep.py          # one thread; goes on where it was stopped; 24 runs of a minute or three
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any

from _train import best, train, write
from lowrank_core.cli.study.ladders import TRIALS, Ladder, Tried, points

SEED = 0


# 0.999 is an end: over 500 steps, 0.9999 averages the same.
BETA2 = Ladder("beta2", (0.8, 0.9, 0.95, 0.99, 0.999), (0.95, 0.99))
DECAY = Ladder("weight_decay", (0.0, 0.1, 0.3, 1.0, 3.0), (0.1,))
START: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 5e-4, "others": 1.0, "beta2": 0.999, "weight_decay": 0.0},
    "galore": {
        "lr": 5e-3, "scale": 0.25, "beta2": 0.999, "weight_decay": 0.0, "update_proj_gap": 50, "moments": "keep",
    },
}  # fmt: skip
SEARCH: dict[str, tuple[Ladder, ...]] = {
    "adamw": (
        Ladder("lr", tuple(2.5e-4 * 2.0**i for i in range(-4, 8)), (2.5e-4, 5e-4, 1e-3, 2e-3)),
        Ladder("others", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0), (3.0, 10.0, 30.0)),
        BETA2,
        DECAY,
    ),
    "galore": (
        Ladder("lr", tuple(2.5e-3 * 2.0**i for i in range(-4, 8)), (2.5e-3, 5e-3, 1e-2, 2e-2)),
        Ladder("scale", tuple(2.0**i for i in range(-6, 3)), (0.125, 0.25, 0.5)),
        BETA2,
        Ladder("update_proj_gap", (5, 10, 25, 50, 100, 200, 500), (25, 50, 100)),
        DECAY,
        Ladder("moments", ("keep", "rotate"), ("keep", "rotate")),
    ),
}


def meant(point: dict[str, Any]) -> dict[str, Any]:
    """The options of `lowrank-core train` that `point` stands for."""
    same = {key: value for key, value in point.items() if key not in ("others", "beta2")}
    return {"betas": [0.9, point["beta2"]], "lr_others": point["lr"] * point.get("others", 1.0), **same}


def search(optimizer: str) -> Iterator[list[dict[str, Any]]]:
    """After each trial of `optimizer`, all so far in order: their points, losses and files."""
    rows: list[dict[str, Any]] = []
    tried: list[Tried] = []
    for point in islice(points(START[optimizer], SEARCH[optimizer], tried), TRIALS):
        record = train(optimizer, SEED, **meant(point))
        rows.append({"point": point, "val_loss": record["val_loss"], "file": record["file"]})
        tried.append(Tried(point, math.inf if record["val_loss"] is None else record["val_loss"]))
        shown = "diverged" if record["val_loss"] is None else f"{record['val_loss']:.4f}"
        print(f"{optimizer:>8} {len(rows):>3}  {shown}  {point}  best {best(rows)['point']}", flush=True)
        yield rows


def keep(trials: dict[str, list[dict[str, Any]]]) -> None:
    """Writes docs/results/train_sweep.json, after every turn: a search that is stopped has its best so far."""
    chosen = {optimizer: best(rows) for optimizer, rows in trials.items()}
    chosen["adamw, one rate"] = best([row for row in trials["adamw"] if row["point"]["others"] == 1.0])
    write("train_sweep", seed=SEED, trials_of_each=TRIALS, best=chosen, trials=trials)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    # In turns: where this is stopped, all have had the same number of trials.
    trials: dict[str, list[dict[str, Any]]] = {}
    for grown in zip_longest(*map(search, SEARCH)):
        trials.update((name, rows) for name, rows in zip(SEARCH, grown, strict=True) if rows)
        keep(trials)


if __name__ == "__main__":
    main()
