"""The methods of `finetune`: which layers they put in place, what steps them, and what they leave as plain LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from lowrank_core.adapters import (
    AdaLoRA,
    ALLoRAAdamW,
    GeoLoRA,
    LoKO,
    LoRALinear,
    LoRAProAdamW,
    ScaledAdamW,
    loraplus_param_groups,
)
from lowrank_core.adapters.placing import linear_targets, put_in_place, train_only
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.finetune.config import FinetuneConfig
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.optim.targets import ALL_LINEAR

_OF_PAIRS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "scaled": ScaledAdamW,
    "lora-pro": LoRAProAdamW,
    "allora": ALLoRAAdamW,
}


class Placed(NamedTuple):
    """The optimizer, and what of it moves ranks: None where they stay."""

    optimizer: torch.optim.Optimizer
    ranks: Callable[[], dict[str, int]] | None


def place(model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> Placed:
    """Puts layers in the place of the linear ones of `model`, but for `heads`, which train whole, and freezes the rest.

    What trains is in float32.

    Raises:
      CliError: it has no linear layer, or a value does not fit it.
    """
    try:
        placed = _place(model, config, heads)
    except ValueError as refusal:
        raise CliError(f"{config.method} cannot train this model: {refusal}") from refusal
    for p in model.parameters():
        if p.requires_grad:  # factors are made in the dtype of the weight beside them
            p.data = p.data.float()
    return placed


def _place(model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> Placed:
    _check_layers(model, config.method, (*EXCLUDED, *heads))
    own, lr = config.own(), config.peak_lrs(config.method)[0]
    of_all: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay or 0.0, **config.adam()}
    excluded = (*EXCLUDED, *heads)
    layers: dict[str, Any] = {"exclude": excluded, "modules_to_save": heads, "seed": config.seed}
    if config.method == "geolora":
        geo = GeoLoRA(model, rank=config.rank, scale=_alpha(config) / config.rank, min_rank=min(2, config.rank),
                      **own, **layers, **of_all)  # fmt: skip
        return Placed(geo, geo.ranks)
    if config.method == "adalora":
        waits, rests = config.steps // 10, config.steps // 5
        ada = AdaLoRA(model, target_rank=config.rank, total_steps=config.steps, t_init=waits, t_final=rests,
                      alpha=_alpha(config), **own, **layers, **of_all)  # fmt: skip
        return Placed(ada, ada.ranks)
    _put_lora(model, config, excluded, heads)
    if config.method == "loko":
        return Placed(LoKO(model, lr=lr, seed=config.seed, **own), None)
    if config.method in _OF_PAIRS:
        return Placed(_OF_PAIRS[config.method](model, **own, **of_all), None)
    groups = loraplus_param_groups(model, lr, own.get("ratio", 1.0), weight_decay=of_all["weight_decay"])
    return Placed(torch.optim.AdamW(groups, **config.adam()), None)


def _check_layers(model: nn.Module, method: str, excluded: tuple[str, ...]) -> None:
    """Raises CliError if the only layers are GPT-2's, whose weights [in, out] no layer here stands beside."""
    modules = [m for name, m in model.named_modules() if not any(word in name for word in excluded)]
    linear = any(isinstance(module, nn.Linear) for module in modules)
    if not linear and any(type(module).__name__ == "Conv1D" for module in modules):
        raise CliError(
            f"{method} cannot train this model: its layers are transformers' Conv1D, and adapters are put beside "
            "torch.nn.Linear alone; let PEFT put them there (`fan_in_fan_out=True`), and step them by an optimizer of "
            "`lowrank_core.adapters`"
        )


def _put_lora(model: nn.Module, config: FinetuneConfig, excluded: tuple[str, ...], heads: tuple[str, ...]) -> None:
    names = linear_targets("LoRALinear", model, ALL_LINEAR, excluded)

    def make(base: nn.Linear, number: int) -> LoRALinear:
        rank = min(config.rank, base.in_features, base.out_features)
        return LoRALinear(base, rank, alpha=_alpha(config) * rank / config.rank)

    torch.manual_seed(config.seed)
    train_only(model, put_in_place(model, names, make).values(), heads)


def _alpha(config: FinetuneConfig) -> float:
    return float(config.alpha or 0.0)
