"""The optimizers of the command line by name, and what is read from them while they train."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import WITHOUT_BETAS
from lowrank_core.optim import LISA, METHODS, LowRankOptimizer, param_groups


def build_optimizer(name: str, model: nn.Module, config: TrainConfig, **keys: Any) -> torch.optim.Optimizer:
    """The optimizer `name` over all of `model`, in `parameter_groups`.

    `keys` are further ones of a method's class: those that are no options of the command line.
    """
    tuned = config.tuned(name)
    shared: dict[str, Any] = {"betas": tuned["betas"], "eps": config.eps}
    groups = parameter_groups(name, model, config)
    own = {**config.own(name), **keys}
    if name in ("adamw", "lisa"):
        plain = [{key: value for key, value in group.items() if key != "rank"} for group in groups]
        adamw = torch.optim.AdamW(plain, fused=True, **shared)
        return adamw if name == "adamw" else LISA(adamw, model, layers="blocks", seed=config.seed, **own)
    if name in WITHOUT_BETAS:
        shared = {"plain_betas": tuned["betas"]}
    return METHODS[name](groups, seed=config.seed, **own, **shared)  # type: ignore[call-arg]


def parameter_groups(name: str, model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """All of `model` as groups with the rates and the decay that `config` has for the optimizer `name`.

    All optimizers part the model alike: the matrices of attention and feed-forward, which methods project, have a
    `rank` and the rate `lr`; embedding, head and norms have None and `lr_others`. Vectors (the norms' weights) are
    never decayed. Each group is at its peak learning rate.
    """
    tuned = config.tuned(name)
    groups = param_groups(model, rank=config.rank_of(name) or 1, verbose=False)
    for group in groups:
        group["lr"] = tuned["lr_others" if group["rank"] is None else "lr"]
    return _spare_vectors(groups, tuned["weight_decay"])


def _spare_vectors(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Parts each group in matrices, decayed, and the rest, not decayed."""
    parted = []
    for group in groups:
        for matrices in (True, False):
            chosen = [(key, p) for key, p in group["params"] if (p.ndim >= 2) is matrices]
            if chosen:
                parted.append({**group, "params": chosen, "weight_decay": weight_decay if matrices else 0.0})
    return parted


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages behind all tensors in the state, counted the same way for every optimizer."""
    held = (v.untyped_storage() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


def subspaces(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Of all projected matrices: number of refreshes, mean rank, captured energy.

    Empty where no energy is measured: for AdamW, random projections and matrices that are taken whole.
    """
    rows = optimizer.projections() if isinstance(optimizer, LowRankOptimizer) else []
    captured = [row.captured for row in rows if row.captured is not None]
    if not captured:
        return {}
    return {
        "refreshes": sum(row.refreshes for row in rows),
        "rank": fmean(row.rank for row in rows),
        "captured": fmean(captured),
        "captured_min": min(captured),
        "captured_max": max(captured),
    }
