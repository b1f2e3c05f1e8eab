"""One run: a stream learned in one pass, each sample answered before it is learned from."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lowrank_core.adapters import LoKO, init_lora_
from lowrank_core.cli.finetune.config import FinetuneConfig
from lowrank_core.cli.finetune.methods import place
from lowrank_core.cli.finetune.resolve import resolve
from lowrank_core.cli.study.foreign import held_bytes
from torch import Tensor, nn

from adapters_compared.stream import Stream, Task
from adapters_compared.trial import Trial

LOOKED_AT = 4  # batches of 8, that a start may see
POINTS = 40  # of the curve of right answers
# What steps plain LoRA; others are methods of `lowrank-core finetune`.
CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.0),
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "loko": LoKO,
    "loko, one gradient": LoKO,
}


def learn(trial: Trial, task: Task) -> dict[str, Any]:
    """What came out, plain values for JSON.

    `online`: the share of the stream that was answered rightly, each before it was learned from, None where the run
    diverged; `final`: that of what is held out, after the last; `curve`: right answers so far, by samples.
    """
    torch.set_num_threads(1)
    began = time.process_time()
    stream, model = task.stream(trial.seed), task.model(trial.seed).eval()
    torch.manual_seed(trial.seed)
    optimizer = build(trial, task, model, stream)
    right, places = [], range(0, len(stream.targets), trial.batch)
    stepping = 0.0
    for start in places:
        at = slice(start, start + trial.batch)
        inputs, targets = [x[at] for x in stream.inputs], stream.targets[at]
        since = time.perf_counter()
        outputs = step(model, optimizer, inputs, targets, trial.method)
        stepping += time.perf_counter() - since
        right += (outputs.argmax(-1) == targets).tolist()
        if not bool(outputs.isfinite().all()):
            break
    final = accuracy(model, stream)
    diverged = len(right) < len(stream.targets) or not all(bool(p.isfinite().all()) for p in model.parameters())
    every = max(1, len(right) // POINTS)
    return {
        "online": None if diverged else sum(right) / len(right),
        "final": None if diverged else final,
        "curve": [(n, sum(right[:n])) for n in range(every, len(right) + 1, every)],
        "skipped": int(getattr(optimizer, "skipped_steps", 0)),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "state_bytes": held_bytes(optimizer),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "step_seconds_shared": round(stepping, 3),
        "cpu_seconds": round(time.process_time() - began, 2),
    }


def build(trial: Trial, task: Task, model: nn.Module, stream: Stream) -> torch.optim.Optimizer:
    """Adapters in place of all linear layers but the heads, which train whole; their start; their optimizer."""
    plain, own = CLASSES.get(trial.method), dict(trial.options)
    base: dict[str, Any] = {"model": task.name, "rank": task.rank, "seed": trial.seed}
    base["steps"] = math.ceil(len(stream.targets) / trial.batch)
    if plain is None:
        return place(model, resolve(FinetuneConfig(method=trial.method, **{**base, **own})), task.heads).optimizer
    place(model, resolve(FinetuneConfig(method="lora", **base)), task.heads)
    if trial.start is not None:
        count = LOOKED_AT * 8
        parts = zip(*(x[:count].split(8) for x in (*stream.inputs, stream.targets)), strict=True)
        init_lora_(model, trial.start, batches=list(parts), loss_fn=lambda of, part: loss_of(of(*part[:-1]), part[-1]))
    given = model if plain is LoKO else [p for p in model.parameters() if p.requires_grad]
    return plain(given, **own)


def step(model: nn.Module, optimizer: Any, inputs: list[Tensor], targets: Tensor, method: str) -> Tensor:
    """One step of any of them; returns the logits before it."""
    outputs: Tensor = model(*inputs)
    if isinstance(optimizer, LoKO) and method != "loko, one gradient":
        optimizer.step(outputs, targets)
        return outputs.detach()
    optimizer.zero_grad()
    loss_of(outputs, targets).backward()
    optimizer.step()
    return outputs.detach()


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(outputs, targets)


@torch.no_grad()
def accuracy(model: nn.Module, stream: Stream) -> float:
    """Of what is held out."""
    right = 0
    for start in range(0, len(stream.held_targets), 32):
        at = slice(start, start + 32)
        right += int((model(*(x[at] for x in stream.held_inputs)).argmax(-1) == stream.held_targets[at]).sum())
    return right / len(stream.held_targets)
