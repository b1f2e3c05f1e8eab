"""Other ranks for the adapters of a model: how many each gets, and factors of that size in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair
from lowrank_core.adapters.layers import LoRALinear
from lowrank_core.adapters.placing import set_module
from lowrank_core.adapters.starts.start import OP


def shared_out(shares: Sequence[Tensor], budget: int) -> list[int]:
    """How many of each layer's `shares` [k_i] are among the `budget` largest of all; of equal ones the earlier."""
    owners = torch.cat([torch.full((len(share),), i) for i, share in enumerate(shares)])
    order = torch.cat([share.double() for share in shares]).argsort(descending=True, stable=True)
    return torch.bincount(owners[order[:budget]], minlength=len(shares)).tolist()


def take_ranks(model: nn.Module, pairs: Sequence[Pair], ranks: Sequence[int]) -> list[Pair | None]:
    """The pairs with new factors, without values, of these ranks; None of rank 0: its layer is as without an adapter.

    The scale of each stays. Where PEFT has a configuration, it names the ranks, so that what is saved loads.

    Raises:
      ValueError: PEFT's configuration is not in `model`; nothing has changed then.
    """
    if list(ranks) == [pair.rank for pair in pairs]:
        return list(pairs)
    configs = {pair.adapter: _config(model, pair.adapter) for pair in pairs if pair.adapter is not None}
    rooted = {adapter: bool(config.config.use_rslora) for adapter, config in configs.items()}
    found = [_taken(model, pair, rank, rooted) for pair, rank in zip(pairs, ranks, strict=True)]
    for adapter, config in configs.items():
        config.write([(pair, rank) for pair, rank in zip(pairs, ranks, strict=True) if pair.adapter == adapter])
    return found


class _Config(NamedTuple):
    """A `peft.LoraConfig`, and what the names of `model` have before those that it uses."""

    config: Any
    prefix: str

    def write(self, ranks: Sequence[tuple[Pair, int]]) -> None:
        """Patterns by the names of modules, the longest first: PEFT takes the first that fits the end of a name."""
        names = {pair: pair.name.removeprefix(self.prefix) for pair, _ in ranks}
        longest = sorted(ranks, key=lambda one: -len(names[one[0]]))
        alphas = {pair: cast(Any, pair.module).lora_alpha[pair.adapter] for pair, rank in ranks if rank}
        usual, alpha = self.config.r, self.config.lora_alpha
        self.config.rank_pattern = {names[pair]: rank for pair, rank in longest if rank not in (0, usual)}
        self.config.alpha_pattern = {names[p]: alphas[p] for p, rank in longest if rank and alphas[p] != alpha}
        if any(rank == 0 for _, rank in ranks):
            self.config.target_modules = {names[pair] for pair, rank in ranks if rank}


def _config(model: nn.Module, adapter: str) -> _Config:
    tuner = import_module("peft.tuners.tuners_utils").BaseTuner
    holders = [
        (name, module)
        for name, module in model.named_modules()
        if adapter in (getattr(module, "peft_config", None) or ())
    ]
    for name, holder in sorted(holders, key=lambda one: not isinstance(one[1], tuner)):  # PEFT's; or transformers' own
        inside = ("model" if not name else f"{name}.model") if isinstance(holder, tuner) else name
        return _Config(cast(Any, holder).peft_config[adapter], f"{inside}." if inside else "")
    raise ValueError(
        f"{OP}: `model` must have PEFT's configuration of {adapter!r} where ranks move, got {type(model).__name__} "
        "without; pass the whole model, or `rho=1`"
    )


def _taken(model: nn.Module, pair: Pair, rank: int, rooted: Mapping[str, bool]) -> Pair | None:
    module = cast(Any, pair.module)
    if rank == 0:
        _remove(model, pair)
        return None
    if isinstance(module, LoRALinear):
        module.lora_A, module.lora_B = _factors(pair, rank)
        return replace(pair, a=module.lora_A, b=module.lora_B)
    key = cast(str, pair.adapter)
    a, b = _factors(pair, rank)
    module.lora_A[key].weight, module.lora_A[key].out_features = a, rank
    module.lora_B[key].weight, module.lora_B[key].in_features = b, rank
    module.lora_alpha[key] *= (rank / pair.rank) ** (0.5 if rooted[key] else 1.0)  # the scale is alpha / r, or / sqrt r
    module.r[key] = rank
    return replace(pair, a=a, b=b)


def _factors(pair: Pair, rank: int) -> Iterator[nn.Parameter]:
    shapes = ((pair.a, (rank, pair.a.shape[1])), (pair.b, (pair.b.shape[0], rank)))
    return (nn.Parameter(old.new_zeros(shape), requires_grad=old.requires_grad) for old, shape in shapes)


def _remove(model: nn.Module, pair: Pair) -> None:
    module = cast(Any, pair.module)
    if not isinstance(module, LoRALinear) and len(module.lora_A) > 1:
        module.delete_adapter(pair.adapter)
    else:
        set_module(model, pair.name, module.base_layer)
