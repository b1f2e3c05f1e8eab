"""Optimizers of other packages, over the same groups as ours: controls of the comparison."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.optimizers import parameter_groups


def build_foreign(name: str, model: nn.Module, config: TrainConfig, **keys: Any) -> torch.optim.Optimizer:
    """The optimizer of the package `name`; the matrices of attention and feed-forward have its `keys`."""
    groups = parameter_groups("adamw", model, config)
    for group in groups:
        projected = group.pop("rank") is not None
        group["params"] = [p for _, p in group["params"]]
        if projected:
            group.update(keys)
    shared = {"betas": tuple(config.tuned("adamw")["betas"]), "eps": config.eps}
    if name == "bitsandbytes":
        made: torch.optim.Optimizer = import_module(name).optim.AdamW8bit(groups, **shared)
        return made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that of AdamW in transformers, which it was copied from
        galore: torch.optim.Optimizer = import_module(name).GaLoreAdamW(groups, no_deprecation_warning=True, **shared)
    return galore


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages behind all tensors of the state, those inside of objects too (GaLore's projectors)."""
    found = [tensor for state in optimizer.state.values() for value in state.values() for tensor in _tensors(value)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "__dict__"):
        yield from _tensors(list(vars(value).values()))
