"""GaLore against AdamW in the default `lowrank-core train`, over paired seeds: the same weights, batches and steps.

Both have the options that bench/train_sweep.py found best on another seed. Met are: GaLore's mean validation loss at
most 1.03 of AdamW's, its optimizer state at most 0.40.

    python bench/train_pairs.py [--threads N] [--seeds N]
"""

from __future__ import annotations

import argparse
from statistics import fmean
from typing import Any

from _train import train, write

LOSS_LIMIT, STATE_LIMIT = 1.03, 0.40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    pairs: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        summary = train(compare="adamw", seed=seed, threads=asked.threads)
        pairs.append({"seed": seed, "wall_s": summary["wall_s"], "runs": summary["runs"]})
        print(seed, *(f"{run['optimizer']} {run['val_loss']:.4f}" for run in summary["runs"]), flush=True)
    galore, adamw = (fmean(pair["runs"][i]["val_loss"] for pair in pairs) for i in range(2))
    state = pairs[0]["runs"][0]["ratio"]
    met = {"loss": galore <= LOSS_LIMIT * adamw, "state": state <= STATE_LIMIT}
    print(f"mean validation loss {galore:.4f} of {adamw:.4f}: {galore / adamw:.4f}; optimizer state {state:.4f}; {met}")
    write(
        "train_pairs",
        threads=asked.threads,
        config=summary["config"],
        mean_val_loss={"galore": galore, "adamw": adamw},
        loss_ratio=galore / adamw,
        state_ratio=state,
        met=met,
        pairs=pairs,
    )


if __name__ == "__main__":
    main()
