"""Choosing what to project: parameter groups from a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NoReturn

from torch import Tensor, nn

from lowrank_core.checks import require, require_choice, words_of
from lowrank_core.memory.geometry import FULL, PROJ_TYPES, RANKS, Rank, is_rank, place, rank_of, shorter_side
from lowrank_core.memory.plan import EXCLUDED, PlanRow, format_plan, plan_row
from lowrank_core.optim.experts import AUTO, Stacked, find_stacks
from lowrank_core.optim.targets import ALL_LINEAR, can_be_target, find_targets, names_of


def param_groups(
    model: nn.Module,
    target_modules: str | Iterable[str] = ALL_LINEAR,
    exclude: str | Iterable[str] = EXCLUDED,
    rank: Rank | None = 128,
    *,
    others: Mapping[str, Any] | None = None,
    stacked: Stacked = AUTO,
    verbose: bool = True,
    **group_keys: Any,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters of `model` into those to project and those for plain AdamW.

    The first group holds the parameters that are not projected, with rank None and the keys of `others`. The last group
    holds those that are projected, with `rank` and `group_keys`; before it comes one for stacks of matrices, with
    `stacked=True` besides. A group without parameters is left out. Parameters come as (name, tensor) pairs; a tied one
    comes once, under its first name. The model may be on the meta device.

    A target is a matrix: a parameter that, seen as [d0, the rest], has at least two rows and two columns. It is
    projected if `rank` is below min(m, n), or by `force_projection`. You can also name the matrix of a re-parametrized
    weight (`parametrizations.weight.original1` of weight_norm, `original` of spectral_norm) by `weight`; torch's older
    forms call it `weight_v` and `weight_orig`. Complex parameters are never projected. A parameter [E, m, n] of a
    mixture of experts is a stack of E matrices, each of which is projected by itself.

    Args:
      model: any module whose parameters have shapes.
      target_modules: "all-linear" (the weights of `nn.Linear`, so the output projection of `nn.MultiheadAttention` too,
        and of transformers' `Conv1D`; the direction matrix if the weight is normed; and stacks); or a list of words:
        each matrix with one of them in a qualified name of its own or of its module, such as "weight_ih" or "in_proj"
        ("all-linear" may be one of the words); or another string: a regular expression that must match the whole
        qualified name of a matrix or of the module that holds it itself.
      exclude: a word or several; a matrix is no target if any of its qualified names contains one of them.
      rank: an int >= 1; or a share of min(m, n) in (0, 1]; or "full", for optimizers that take matrices whole (the
        others step such a group as plain AdamW); or None: the key is left out, and the optimizer's own rank holds.
      others: keys of the group that is not projected, such as `lr`; any key of a group except `rank` and `stacked`.
      stacked: which parameters [E, m, n] are stacks of E matrices, where they are targets: "auto", those of a module
        with "Expert" in the name of its class, and bare ones with E > 1 of a module that is neither a convolution nor
        another layer of torch's; True, all of them; False, none; or a word or several in their names.
      verbose: prints the plan: what is projected, what falls back to AdamW, why, and what would change it.
      group_keys: further keys of the group to project, such as `scale`, `proj_type` or `lr`.

    Returns:
      Groups for any optimizer of this package.

    Raises:
      TypeError: `model` is no module.
      ValueError: a target matches nothing, nothing would be projected, a value out of its range, or a lazy
        parameter without a shape.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import param_groups
      >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(100, 64), "rnn": torch.nn.GRU(64, 32, bias=False)})
      >>> groups = param_groups(model, ["rnn"], rank=8, others={"lr": 1e-3}, verbose=False)
      >>> [(group["rank"], [name for name, _ in group["params"]]) for group in groups]
      [(None, ['embed.weight']), (8, ['rnn.weight_ih_l0', 'rnn.weight_hh_l0'])]
    """
    groups, rows = split("param_groups", model, target_modules, exclude, rank, others, stacked, group_keys)
    if verbose:
        print(f"{format_plan(rows)}\n{_summary(rows)}")  # noqa: T201  (the one thing this package prints)
    return groups


def split(
    op: str,
    model: nn.Module,
    target_modules: str | Iterable[str],
    exclude: str | Iterable[str],
    rank: Rank | None,
    others: Mapping[str, Any] | None,
    stacked: Stacked,
    group_keys: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[PlanRow]]:
    """The groups of `param_groups` and the plan behind them; errors name the function `op`."""
    _check_keys(op, rank, group_keys, others)
    force, proj_type = group_keys.get("force_projection", False), group_keys.get("proj_type", "std")
    require_choice(op, "proj_type", proj_type, PROJ_TYPES)
    names, words = names_of(op, model), words_of(op, "exclude", exclude)
    stacks = find_stacks(op, model, names, stacked)
    wanted = find_targets(op, model, names, target_modules, stacks)
    rows: list[PlanRow] = []
    plain: list[tuple[str, Tensor]] = []
    stacked_ones: list[tuple[str, Tensor]] = []
    projected: list[tuple[str, Tensor]] = []
    targets, excluded = [], 0
    for param, known_as in names.items():
        if not param.requires_grad:
            continue
        name, shape = known_as[0], tuple(param.shape)
        by = [word for word in words if any(word in alias for alias in known_as)]
        if param in wanted and not by:
            targets.append(shape[1:] if param in stacks else shape)
            rows.append(_placed(name, shape, param in stacks, rank, proj_type, force))
        else:
            excluded += param in wanted
            rows.append(plan_row(name, shape, None, _reason(param, param in wanted, by)))
        of_group = (stacked_ones if param in stacks else projected) if rows[-1].projected else plain
        of_group.append((name, param))
    if not projected and not stacked_ones:
        _refuse_plan(op, rank, targets, excluded, words)
    own = dict(group_keys) if rank is None else {"rank": rank, **group_keys}
    groups = [
        {"params": plain, **(others or {}), "rank": None},
        {"params": stacked_ones, **own, "stacked": True},
        {"params": projected, **own},
    ]
    return [group for group in groups if group["params"]], rows


def _check_keys(op: str, rank: Rank | None, group_keys: Mapping[str, Any], others: Mapping[str, Any] | None) -> None:
    require(rank is None or is_rank(rank), op, "rank", RANKS, rank)
    mapping = others is None or isinstance(others, Mapping)
    require(mapping, op, "others", 'be a dict of keys of a group, such as {"lr": 1e-3}', others)
    for key in ("params", "param_names"):
        rule = "be left to the model, which says them for every group"
        require(key not in group_keys and key not in (others or {}), op, key, rule, "some", "leave it out")
    for key in ("rank", "stacked"):
        rule = f"have no `{key}`: what is not projected has none"
        require(key not in (others or {}), op, "others", rule, others, f"pass `{key}` beside it")


def _reason(param: Tensor, wanted: bool, excluded_by: list[str]) -> str:
    """Why a parameter is no target, and what would change that."""
    if not can_be_target(param):  # nothing that the caller chooses would change it
        return "complex" if param.is_complex() else place(tuple(param.shape), 1)[1]
    if wanted:
        return f'excluded by "{excluded_by[0]}": pass exclude=()'
    return "not a target: name it in `target_modules`" + (" and pass exclude=()" if excluded_by else "")


def _placed(
    name: str, shape: tuple[int, ...], stacked: bool, rank: Rank | None, proj_type: str, force: bool
) -> PlanRow:
    """The row of a target."""
    matrix = shape[1:] if stacked else shape
    shorter = shorter_side(matrix)
    where, note = place(
        matrix, 1 if rank is None or rank == FULL else rank_of({"rank": rank}, shorter), proj_type, force
    )
    if rank == FULL:
        note = "whole, by an optimizer that takes matrices whole"
    if rank is None:
        note = f"where the optimizer's `rank` is below {shorter}"
    row = plan_row(name, shape, where, note, stacked)
    return row._replace(rank=None if rank is None else shorter) if rank in (None, FULL) else row


def _refuse_plan(
    op: str, rank: Rank | None, targets: list[tuple[int, ...]], excluded: int, words: tuple[str, ...]
) -> NoReturn:
    """Raises ValueError because nothing is projected; the message names the argument that is the reason."""
    fails = "for anything to be projected"
    if targets:
        raise ValueError(
            f"{op}: `rank` must be below min(m, n) of a target {fails}, got {rank} for {len(targets)} targets; "
            f"the largest min(m, n) among them is {max(map(shorter_side, targets))}"
        )
    if excluded:
        raise ValueError(
            f"{op}: `exclude` must leave a target {fails}, got {words} that excludes all {excluded}; pass exclude=()"
        )
    raise ValueError(
        f"{op}: `target_modules` must name a matrix that is trained {fails}, got frozen ones alone; "
        "name others, or let those train"
    )


def _summary(rows: list[PlanRow]) -> str:
    sizes = [(row.projected, prod(row.shape)) for row in rows]
    projected = [size for hit, size in sizes if hit]
    total = sum(size for _, size in sizes)
    return f"projected: {len(projected)} of {len(rows)} tensors, {sum(projected):,} of {total:,} parameters"
