"""Two rates for two factors."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowrank_core.adapters.find import require_pairs
from lowrank_core.checks import is_number, require


def loraplus_param_groups(
    model: nn.Module,
    lr: float,
    ratio: float = 16.0,
    *,
    embedding_lr: float = 1e-6,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for any optimizer: the outer factors of adapters have `ratio` times the rate of the inner ones.

    Args:
      model: with adapters that `find_pairs` finds.
      lr: >= 0, of A, and of all else that is trained and not named below.
      ratio: > 0, rate of B over that of A. What has one dimension goes with B.
      embedding_lr: >= 0, of the factors of embeddings.
      weight_decay: >= 0, of what has two dimensions or more.

    Returns:
      Groups with (name, parameter) pairs, `lr` and `weight_decay`; those without parameters are left out.

    Raises:
      TypeError: `model` is no module. ValueError: it has no trained adapters, or a value is out of its range.

    Source: Hayou et al. 2024 (arXiv:2402.12354); which parameter goes where, and 1e-6, as in the authors' code.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> groups = adapters.loraplus_param_groups(model, 1e-3, ratio=16)
      >>> [(group["lr"], [name for name, _ in group["params"]]) for group in groups]
      [(0.001, ['0.lora_A']), (0.016, ['0.lora_B'])]
    """
    op = "loraplus_param_groups"
    require(is_number(lr, 0.0), op, "lr", "be a number >= 0", lr)
    require(is_number(ratio) and ratio > 0, op, "ratio", "be a number > 0", ratio)
    require(is_number(embedding_lr, 0.0), op, "embedding_lr", "be a number >= 0", embedding_lr)
    require(is_number(weight_decay, 0.0), op, "weight_decay", "be a number >= 0", weight_decay)
    pairs = require_pairs(op, model)
    outer = {pair.b for pair in pairs}
    embeddings = {factor for pair in pairs if pair.embedding for factor in (pair.a, pair.b)}
    rates: dict[str, float] = {"inner": lr, "outer": lr * ratio, "vectors": lr * ratio, "embeddings": embedding_lr}
    found: dict[str, list[Any]] = {kind: [] for kind in rates}
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = "embeddings" if p in embeddings else "vectors" if p.ndim < 2 else "outer" if p in outer else "inner"
            found[kind].append((name, p))
    return [
        {"params": params, "lr": rates[kind], "weight_decay": 0.0 if kind == "vectors" else weight_decay}
        for kind, params in found.items()
        if params
    ]
