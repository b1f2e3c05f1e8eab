"""Choosing what to project: parameter groups from a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

from torch import Tensor, nn

from lowrank_core.optim.checks import is_count, require, require_choice
from lowrank_core.optim.geometry import PROJ_TYPES, place
from lowrank_core.optim.plan import PlanRow, format_plan, numberless, plan_row

_OP = "param_groups"
ALL_LINEAR = "all-linear"
EXCLUDED = ("embed", "lm_head")


def param_groups(
    model: nn.Module,
    target_modules: str | Iterable[str] = ALL_LINEAR,
    exclude: str | Iterable[str] = EXCLUDED,
    rank: int = 128,
    *,
    verbose: bool = True,
    **group_keys: Any,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters of `model` into those to project and those for plain AdamW.

    The first group holds what is not targeted, with rank None; the last one holds the targets with `rank` and
    `group_keys`. A group without parameters is left out. Parameters come as (name, tensor) pairs; a tied
    one comes once, under its first name.

    Args:
      model: any module.
      target_modules: "all-linear" (the weights of `nn.Linear` and of transformers' `Conv1D`); or a list of
        words: the weight, if of two or more dimensions, of each module with one of them in its qualified
        name; or another string: a regular expression that the whole qualified name of a module must match.
      exclude: a word or several; a weight is no target with one of them in any of its qualified names.
      rank: >= 1.
      verbose: prints the plan: what is projected, what falls back to AdamW, and why.
      group_keys: further keys of the group to project, such as `scale`, `proj_type` or `lr`.

    Returns:
      Groups for any optimizer of this package.

    Raises:
      ValueError: a target matches no module, or nothing would be projected.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import param_groups
      >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "up": torch.nn.Linear(64, 32)})
      >>> groups = param_groups(model, rank=8, verbose=False)
      >>> [(group["rank"], [name for name, _ in group["params"]]) for group in groups]
      [(None, ['embed.weight', 'up.bias']), (8, ['up.weight'])]
    """
    require(is_count(rank, 1), _OP, "rank", "be an int >= 1", rank)
    proj_type, force = group_keys.get("proj_type", "std"), group_keys.get("force_projection", False)
    require_choice(_OP, "proj_type", proj_type, PROJ_TYPES)
    words = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    targets = _targets(model, target_modules)
    rows: list[PlanRow] = []
    plain: list[tuple[str, Tensor]] = []
    projected: list[tuple[str, Tensor]] = []
    for param, known_as in _names(model).items():
        name, shape = known_as[0], tuple(param.shape)
        hits = [word for word in words if any(word in alias for alias in known_as)]
        if hits or param not in targets:
            plain.append((name, param))
            rows.append(plan_row(name, shape, None, f'excluded by "{hits[0]}"' if hits else "not a target"))
        else:
            projected.append((name, param))
            rows.append(plan_row(name, shape, *place(shape, rank, proj_type, force)))
    if not any(row.projected for row in rows):
        sides = [min(p.shape[0], prod(p.shape[1:])) for _, p in projected if p.ndim >= 2]
        raise ValueError(
            f"{_OP}: `rank` must be below min(m, n) of a target for anything to be projected, got {rank} for "
            f"{len(projected)} targets; the largest min(m, n) among them is {max(sides, default=0)}"
        )
    if verbose:
        print(f"{format_plan(rows)}\n{_summary(rows)}")  # noqa: T201  (the one thing this package prints)
    groups = [{"params": plain, "rank": None}, {"params": projected, "rank": rank, **group_keys}]
    return [group for group in groups if group["params"]]


def _names(model: nn.Module) -> dict[Tensor, list[str]]:
    """Every trainable parameter with all the names it goes by, in the order of the first."""
    names: dict[Tensor, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if param.requires_grad:
            names.setdefault(param, []).append(name)
    return names


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim >= 2:
            yield name, module, weight


def _targets(model: nn.Module, target_modules: str | Iterable[str]) -> set[Tensor]:
    """The weights of the modules that `target_modules` names."""
    weights = list(_weights(model))
    if target_modules == ALL_LINEAR:
        return {w for _, module, w in weights if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"}
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(f"{_OP}: `target_modules` must be a regular expression, got {error}") from error
        found = {w for name, _, w in weights if pattern.fullmatch(name)}
        _require_match(bool(found), target_modules, weights, "pass a list to look for parts of names")
        return found
    found = set()
    for word in target_modules:
        hits = {w for name, _, w in weights if word in name}
        _require_match(bool(hits), word, weights, "")
        found |= hits
    return found


def _require_match(met: bool, target: str, weights: list[tuple[str, nn.Module, Tensor]], fix: str) -> None:
    shown = sorted({numberless(name) for name, _, _ in weights})
    there = ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
    rule = f"match a module with a weight of two or more dimensions (there are: {there})"
    require(met, _OP, "target_modules", rule, target, fix)


def _summary(rows: list[PlanRow]) -> str:
    sizes = [(row.projected, prod(row.shape)) for row in rows]
    projected = [size for hit, size in sizes if hit]
    total = sum(size for _, size in sizes)
    return f"projected: {len(projected)} of {len(rows)} tensors, {sum(projected):,} of {total:,} parameters"
