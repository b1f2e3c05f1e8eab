"""Tunes the optimizers of the default `lowrank-core train`: option by option, each time from the best so far.

The seed is none of those that bench/train_pairs.py compares on. Losses are validation losses in nats per byte after the
last step; the defaults of the command line are the best options found here.

    python bench/train_sweep.py [--threads N] [--steps N]
"""

from __future__ import annotations

import argparse
from typing import Any

from _train import train, write

SEED = 100
SEARCH: dict[str, dict[str, tuple[Any, ...]]] = {
    "adamw": {"lr": (3e-4, 5e-4, 7e-4, 1e-3, 2e-3)},
    "galore": {
        "lr": (2.5e-3, 5e-3, 1e-2, 2e-2),
        "scale": (0.25, 0.1, 0.5),
        "update_proj_gap": (50, 25, 100, 200),
        "moments": ("keep", "rotate"),
    },
}


def search(optimizer: str, fixed: dict[str, Any]) -> list[dict[str, Any]]:
    """Every run made for `optimizer`, in order: its options and its loss."""
    best = {option: values[0] for option, values in SEARCH[optimizer].items()}
    rows: list[dict[str, Any]] = []
    for option, values in SEARCH[optimizer].items():
        for value in values:
            options = {**best, option: value}
            if all(row["options"] != options for row in rows):
                (run,) = train(optimizer=optimizer, seed=SEED, **options, **fixed)["runs"]
                rows.append({"optimizer": optimizer, "options": options, "val_loss": run["val_loss"]})
                print(f"{optimizer:>8}  {run['val_loss']:.4f}  {options}", flush=True)
        best = min(rows, key=lambda row: row["val_loss"])["options"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    fixed = vars(parser.parse_args())
    rows = [row for optimizer in SEARCH for row in search(optimizer, fixed)]
    best = {name: min((r for r in rows if r["optimizer"] == name), key=lambda r: r["val_loss"]) for name in SEARCH}
    write("train_sweep", seed=SEED, **fixed, best=best, rows=rows)


if __name__ == "__main__":
    main()
