"""LoKO in one pass over the digits of scikit-learn, one sample at a time, beside AdamW, AdaGrad and SGD.

`python bench/bench_loko.py` writes docs/results/bench_loko.json: the share of samples that are classified rightly
before they are learned from, for each setting and seed. A perceptron (64-64-64-10) has learned five of the ten classes
from 500 samples; then adapters of rank 4 in all of its layers learn from the other 1297, in an order drawn by the seed.
In the stream "shifted" the labels of the second half are turned by 3. No time is measured: other work may run beside.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from adapters_compared.digits import FIRST, digits, learn_known, network, turned
from lowrank_core import adapters
from lowrank_core.cli.environment import environment
from torch import Tensor, nn
from tqdm import tqdm

RESULT = Path(__file__).resolve().parents[1] / "docs/results/bench_loko.json"
RANK = 4
LIMITS = (1.0, 0.1)
P0 = (1e-3, 0.1, 0.3, 1.0)

Make = Callable[[nn.Module], Any]


def peers() -> dict[str, Make]:
    """torch's optimizers over a grid of rates, and LoKO by default and over a grid of variances and limits."""
    found: dict[str, Make] = {}
    for name, kind, rates, keys in (
        ("AdamW", torch.optim.AdamW, (1e-3, 3e-3, 1e-2, 3e-2), {"weight_decay": 0.0}),
        ("AdaGrad", torch.optim.Adagrad, (1e-2, 3e-2, 1e-1, 3e-1), {}),
        ("SGD", torch.optim.SGD, (1e-2, 3e-2, 1e-1), {}),
    ):
        for lr in rates:
            found[f"{name} {lr:g}"] = lambda model, kind=kind, lr=lr, keys=keys: kind(  # type: ignore[misc]
                [p for p in model.parameters() if p.requires_grad], lr=lr, **keys
            )
    found["LoKO"] = lambda model: adapters.LoKO(model, batched=True, chunk=16)
    for limit in LIMITS:
        for p0 in P0:
            found[f"LoKO p0 {p0:g}, limit {limit}"] = lambda model, p0=p0, limit=limit: adapters.LoKO(  # type: ignore[misc]
                model, p0=p0, kl_limit=limit, batched=True, chunk=16
            )
    return found


def stream(seed: int, shifted: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """The model with its adapters, and the samples [n, 64] with their classes [n] in order."""
    data, labels = digits()
    torch.manual_seed(seed)
    model = network()
    order = torch.randperm(len(data))
    learn_known(model, order[:FIRST])
    for i in (0, 2, 4):
        model[i] = adapters.LoRALinear(model[i], RANK)
    classes = labels[order[FIRST:]]
    return model, data[order[FIRST:]], turned(classes) if shifted else classes


def accuracy(make: Make, seed: int, shifted: bool) -> dict[str, float]:
    """The share of right answers, each before the sample is learned from; and how many steps were skipped."""
    model, samples, classes = stream(seed, shifted)
    optimizer, right = make(model), 0
    for x, y in zip(samples.split(1), classes.split(1), strict=True):
        outputs = model(x)
        right += int(outputs.argmax() == y)
        if isinstance(optimizer, adapters.LoKO):
            optimizer.step(outputs, y)
        else:
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs, y).backward()
            optimizer.step()
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return {"accuracy": right / len(classes), "skipped": getattr(optimizer, "skipped_steps", 0), "finite": finite}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default: %(default)s)")
    count = options.parse_args().seeds
    torch.set_num_threads(1)
    rows = []
    runs = [(name, make, shifted) for shifted in (False, True) for name, make in peers().items()]
    for name, make, shifted in tqdm(runs, unit="setting", disable=None):
        found = [accuracy(make, seed, shifted) for seed in range(count)]
        rows.append(
            {"setting": name, "shifted": shifted, "mean": fmean(one["accuracy"] for one in found), "runs": found}
        )
        tqdm.write(f"{'shifted' if shifted else 'plain':8} {name:28} {rows[-1]['mean']:.3f}")
    about = {**environment(), "command": f"python bench/bench_loko.py --seeds {count}", "threads": 1}
    RESULT.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
