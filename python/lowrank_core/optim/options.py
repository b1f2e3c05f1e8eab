"""The keys of a group that every optimizer of the package has, and what is refused of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lowrank_core.ops.subspace_step_check import ROUNDINGS
from lowrank_core.optim.checks import is_count, is_number, require, require_choice
from lowrank_core.optim.geometry import PROJ_TYPES


def refuse_unknown(op: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError if one of `keys` is not among the `known` ones, with a list of those."""
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise TypeError(
            f"{op}: `{unknown[0]}` must be one of its keys, got {', '.join(unknown)}; "
            f"known keys: {', '.join(sorted(known))}"
        )


def check_values(op: str, group: dict[str, Any]) -> None:
    """Raises ValueError if a key of `group` that the loop itself reads is out of its range."""
    lr, rank, decay = group["lr"], group["rank"], group["weight_decay"]
    scalar = isinstance(lr, Tensor) and lr.numel() == 1
    require(scalar or is_number(lr, 0.0), op, "lr", "be a number >= 0 or a 0-d tensor", lr)
    require(is_number(decay, 0.0), op, "weight_decay", "be a number >= 0", decay)
    require(rank is None or is_count(rank, 1), op, "rank", "be an int >= 1 or None", rank)
    require(isinstance(group["seed"], int), op, "seed", "be an int", group["seed"])
    require_choice(op, "proj_type", group["proj_type"], PROJ_TYPES)
    require_choice(op, "nonfinite", group["nonfinite"], ("skip", "raise"))
    require_choice(op, "rounding", group["rounding"], ROUNDINGS)
    for key in ("maximize", "force_projection"):
        require(isinstance(group[key], bool), op, key, "be True or False", group[key])
