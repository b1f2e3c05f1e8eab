"""The keys of a group that every optimizer of the package has, and the values that are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from lowrank_core.checks import is_count, is_number, require, require_choice
from lowrank_core.memory.geometry import PROJ_TYPES, RANKS, is_rank
from lowrank_core.ops.subspace_step.check import ROUNDINGS
from lowrank_core.optim.devices import stays_on_device

# What torch and its schedulers put into a group besides the optimizer's own keys. It stays there.
_TORCHS = ("params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")

# Keys of torch's and transformers' AdamW that are no keys here, with the values that change nothing.
_NEUTRAL: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "foreach": lambda value, group: value in (None, True, False),
    "fused": lambda value, group: value in (None, True, False),
    "no_deprecation_warning": lambda value, group: value in (True, False),
    "capturable": lambda value, group: not value,
    "amsgrad": lambda value, group: not value,
    "differentiable": lambda value, group: not value,
    "correct_bias": lambda value, group: bool(value),
    "decoupled_weight_decay": lambda value, group: bool(value) or not group.get("weight_decay"),
}
_WHY_NOT = {
    "capturable": "a step reads numbers on the host",
    "amsgrad": "no maximum of second moments is kept",
    "differentiable": "a step is not differentiated",
    "correct_bias": "the bias of the moments is always corrected",
    "decoupled_weight_decay": "the decay is always decoupled",
}


def own_keys(op: str, keys: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """`keys` of a group or a constructor, without those keys of torch's AdamW that change nothing here.

    Raises:
      TypeError: a key is not among the `known` ones, with a list of those.
      ValueError: a key of torch's AdamW asks for what this optimizer does not do.
    """
    own = {key: value for key, value in keys.items() if key in known or key not in _NEUTRAL}
    if unknown := [key for key in own if key not in known and key not in _TORCHS]:
        raise TypeError(
            f"{op}: `{unknown[0]}` must be one of its keys, got {', '.join(unknown)}; "
            f"known keys: {', '.join(sorted(known))}"
        )
    for key in keys.keys() - own.keys():
        if not _NEUTRAL[key](keys[key], keys):
            why = _WHY_NOT.get(key, "it is True, False or None")
            raise ValueError(f"{op}: `{key}` must not be {keys[key]!r}: {why}; leave it out")
    return own


def keys_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The keys of a group among the arguments of a constructor, which it takes from `locals()`."""
    return {key: value for key, value in arguments.items() if key not in ("self", "params", "torch_keys", "__class__")}


def plain_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """`group` with NumPy's numbers as Python's, which a checkpoint can hold and no arithmetic narrows."""
    return {key: _plain(value) for key, value in group.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def check_rates(op: str, group: dict[str, Any], waiting: bool = True) -> None:
    """Raises ValueError if what schedules change is out of its range; checked at every step, too.

    `waiting`: whether a rate that lives on an accelerator is read, too.
    """
    lr, decay = group["lr"], group["weight_decay"]
    if waiting or not stays_on_device(lr):
        number = lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 and lr.device.type != "meta" else lr
        require(is_number(number, 0.0), op, "lr", "be a number >= 0 or a tensor with one", lr)
    require(is_number(decay, 0.0), op, "weight_decay", "be a number >= 0", decay)


def check_values(op: str, group: dict[str, Any]) -> None:
    """Raises ValueError if a key of `group` that the loop itself reads is out of its range."""
    check_rates(op, group)
    rank = group["rank"]
    require(rank is None or is_rank(rank), op, "rank", RANKS, rank)
    require(is_count(group["seed"], -(2**63)), op, "seed", "be an int >= -2**63", group["seed"])
    require_choice(op, "proj_type", group.get("proj_type", "std"), PROJ_TYPES)
    require_choice(op, "nonfinite", group["nonfinite"], ("skip", "raise"))
    require_choice(op, "rounding", group["rounding"], ROUNDINGS)
    plain = group.get("plain_lr")
    require(plain is None or is_number(plain, 0.0), op, "plain_lr", "be a number >= 0 or None", plain)
    for key in ("maximize", "force_projection", "stacked"):
        require(isinstance(group.get(key, False), bool), op, key, "be True or False", group.get(key))
