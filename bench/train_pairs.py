"""GaLore against AdamW in the default `lowrank-core train`, over paired seeds: the same weights, batches and steps.

All have the options that bench/train_sweep.py found best on another seed: GaLore; AdamW with two rates, of the matrices
and of the rest; AdamW with one rate. Losses are validation losses in nats per byte after the last step; a difference is
called one only where its 95 % interval (Student's, over the seeds) excludes zero.

    nice python bench/train_pairs.py [--seeds N]     # losses: one thread, in the background, goes on where it stopped
    python bench/train_pairs.py --time [--threads N] [--steps N]     # seconds: interleaved steps on a quiet machine
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from statistics import fmean
from typing import Any

from _train import RESULTS, options, train, write
from lowrank_core.cli.study import intervals
from train_sweep import SEED, meant

RIVALS = ("galore", "adamw", "adamw, one rate")


def paired(one: list[float], other: list[float]) -> dict[str, Any]:
    """Mean of the differences one - other, and its 95 % interval."""
    found = intervals.paired(one, other)
    seen = {-1: "less", 0: "no difference seen", 1: "more"}[found.sign]
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return {"differences": differences, "mean": found.mean, "interval": [found.low, found.high], "seen": seen}


def losses(best: dict[str, Any], seeds: list[int]) -> None:
    """Trains every rival on every seed and writes docs/results/train_pairs.json."""
    runs: dict[str, list[dict[str, Any]]] = {rival: [] for rival in RIVALS}
    for seed in seeds:
        for rival in RIVALS:
            runs[rival].append(train(rival.split(",")[0], seed, **meant(best[rival]["point"])))
        print(seed, *(f"{rival} {runs[rival][-1]['val_loss']:.4f}" for rival in RIVALS), flush=True)
    found = {rival: [record["val_loss"] for record in records] for rival, records in runs.items()}
    differences = {f"{a} - {b}": paired(found[a], found[b]) for a, b in combinations(RIVALS, 2)}
    for name, row in differences.items():
        print(f"{name}: {row['mean']:+.4f} [{row['interval'][0]:+.4f}, {row['interval'][1]:+.4f}], {row['seen']}")
    write(
        "train_pairs",
        seeds=seeds,
        points={rival: best[rival]["point"] for rival in RIVALS},
        mean_val_loss={rival: fmean(values) for rival, values in found.items()},
        val_loss=found,
        state_bytes={rival: records[0]["state_bytes"] for rival, records in runs.items()},
        state_ratio=runs["galore"][0]["ratio"],
        differences=differences,
        files={rival: [record["file"] for record in records] for rival, records in runs.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--time", action="store_true", help="measure seconds and no losses")
    parser.add_argument("--threads", type=int, default=2, help="with --time")
    parser.add_argument("--steps", type=int, default=300, help="with --time")
    asked = parser.parse_args()
    best: dict[str, Any] = json.loads((RESULTS / "train_sweep.json").read_text())["best"]
    if not asked.time:
        losses(best, [SEED + 1 + i for i in range(asked.seeds)])
        return
    from _train_time import seconds

    chosen = {name: options(name, SEED, **meant(best[name]["point"])) for name in ("galore", "adamw")}
    write("train_time", threads=asked.threads, steps=asked.steps, **seconds(chosen, asked.threads, asked.steps))


if __name__ == "__main__":
    main()
