"""What recording the layers costs `lowrank-core train`: the default GaLore run twice in one process, once with records.

Both take turns, a step each, in an order that alternates, and every step of the one is recorded. Their weights must end
equal to the bit. The ratio is the median over pairs of steps; a run that records one step in ten, the default for 500
steps, pays a tenth of what is above one.

    python bench/bench_monitor.py [--threads N] [--pairs N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from _train import write
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.layers import recorded
from lowrank_core.cli.loop import Run
from lowrank_core.cli.metrics import MetricsLog
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.text import load_corpus

LEFT_OUT = 10  # pairs
EVERY = 10  # steps from one record to the next in a run of 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=150)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    load = os.getloadavg()[0]
    config = resolve(TrainConfig())
    corpus = load_corpus(config.text, val_fraction=config.val_fraction, window=config.window)
    with tempfile.TemporaryDirectory() as name, MetricsLog(Path(name, "metrics.jsonl")) as log:
        folder = Path(name)
        watched, plain = (Run("galore", config, corpus, folder) for _ in range(2))
        with recorded("galore", watched.optimizer, folder, 1) as layers:
            pairs = [one_pair(watched, plain, log, odd=bool(i % 2)) for i in range(LEFT_OUT + asked.pairs)]
        assert all(map(torch.equal, watched.model.parameters(), plain.model.parameters())), "a record changed a step"
        size = os.path.getsize(layers.path or "") / len(pairs)
    kept = pairs[LEFT_OUT:]
    ratio = median(w / p for w, p in kept)
    row = {
        "step_s": median(p for _, p in kept),
        "recorded_step_ratio": ratio,
        "share_of_a_run": (ratio - 1) / EVERY,
        "bytes_per_record": size,
    }
    print(row)
    write("monitor", threads=asked.threads, load_average_before=load, every=EVERY, **row, pairs=kept)


def one_pair(watched: Run, plain: Run, log: MetricsLog, *, odd: bool) -> tuple[float, float]:
    """Seconds of a step with a record, and of the same without."""
    found = {}
    for run in (plain, watched) if odd else (watched, plain):
        started = time.perf_counter()
        run.train_step(log)
        found[run is watched] = time.perf_counter() - started
    return found[True], found[False]


if __name__ == "__main__":
    main()
