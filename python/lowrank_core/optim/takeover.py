"""Changing over to an optimizer of this package in the middle of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.codecs import Codec, encode
from lowrank_core.optim.parts.rules import Rule
from lowrank_core.optim.parts.subspaces import Bases
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.slots import Slot, State, by_param

_OP = "from_state"
_ORTHONORMAL = 1e-2  # how far rows of a basis may be from it: bfloat16 ones are off by 4e-3


class Carried(NamedTuple):
    """What became of the state of one parameter."""

    name: str
    carried: bool
    reason: str  # what was carried, or why nothing was


def states_of(
    saved: torch.optim.Optimizer | Mapping[str, Any], slots: Sequence[Slot], sizes: Sequence[int]
) -> dict[Slot, State]:
    """The states in `saved`, by the slots of the parameters that they belong to.

    Parameters are recognized as themselves where `saved` is an optimizer, by their names where both sides have names,
    else by their position in groups of the same `sizes`.

    Raises:
      ValueError: `saved` is neither, or its parameters cannot be told.
    """
    if isinstance(saved, torch.optim.Optimizer):
        return {slot: _own(slot, saved.state[slot.param]) for slot in slots if saved.state.get(slot.param)}
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError(f"{_OP}: `saved` must be an optimizer or what its state_dict() returned, got no such dict")
    groups, states = saved["param_groups"], saved["state"]
    ids = [key for group in groups for key in group["params"]]
    if all(group.get("param_names") for group in groups):
        names = [name for group in groups for name in group["param_names"]]
        by_name = {name: states.get(key) for name, key in zip(names, ids, strict=True)}
        found = {slot: _own(slot, state) for slot in slots if (state := by_name.get(slot.param_name))}
        if found:
            return found
    theirs = [len(group["params"]) for group in groups]
    placed = [(slot, states.get(key)) for key, some in zip(ids, by_param(slots), strict=False) for slot in some]
    if theirs != list(sizes) or not all(_fits(slot, state) for slot, state in placed):
        raise ValueError(
            f"{_OP}: `saved` must name its parameters, or have them in the groups of this optimizer, got groups "
            f"of {theirs} without known names for groups of {list(sizes)}; make the optimizer that wrote it for this "
            "model (a Trainer's: `create_optimizer()`), load `saved` into that and pass it, or give both of them named "
            "parameters"
        )
    return {slot: _own(slot, state) for slot, state in placed if state}


def _own(slot: Slot, state: State) -> State:
    """What `state`, that of the parameter, says of `slot`."""
    mine: State = {}
    for key, value in state.items():
        whole = isinstance(value, Tensor) and value.shape == slot.param.shape
        mine[key] = slot.own(value) if whole else value
    return mine


def carry(slot: Slot, parts: Parts, theirs: State, fresh: State, gap: int) -> tuple[State | None, str]:
    """The state of `slot` with what fits of `theirs`, and a sentence.

    Args:
      theirs: of torch's AdamW, or of galore_torch.
      fresh: as it is opened, which becomes the state.
      gap: steps from one search to the next.
    """
    moments = [value for key in ("exp_avg", "exp_avg_sq") if isinstance(value := theirs.get(key), Tensor)]
    if len(moments) != 2:
        return None, f"it has no exp_avg and exp_avg_sq but {', '.join(sorted(map(str, theirs)))}: it starts anew"
    step, where = float(theirs.get("step", 0)), slot.geometry
    rule, codec = (parts.plain, parts.plain_codec) if where is None else (parts.rule, parts.moment_codec)
    shape = tuple(slot.weight.shape) if where is None else where.low_shape
    if set(rule.layout(shape)) != {"exp_avg", "exp_avg_sq"}:
        return None, "its rule keeps other moments than Adam's: it starts anew"
    given = [torch.view_as_real(moment) if moment.is_complex() else moment for moment in moments]
    if any(tuple(moment.shape) != shape for moment in given):
        kind = "" if where is None else f" of a subspace of rank {where.rank}"
        return None, f"its moments {tuple(given[0].shape)} are none{kind} {shape}: it starts anew"
    fresh["step"].fill_(step)
    if where is None:
        _put(slot, rule, codec, fresh, given, step, shape)
        return fresh, "moments and step"
    bases = _bases(slot, theirs.get("projector"))
    if bases is None or "proj.basis" not in fresh:
        return None, "its moments came without the basis that they are in: it starts anew"
    _put(slot, rule, codec, fresh, given, step, shape)
    parts.projector.hold(slot, fresh, Dense(bases))
    looked = int(step - 1) // gap * gap if step else 0
    fresh |= {"proj.refreshes": 1, "proj.last_refresh": looked, "proj.last_look": looked}
    return fresh, "moments, basis and step"


def _put(
    slot: Slot, rule: Rule, codec: Codec, fresh: State, moments: list[Tensor], step: float, shape: tuple[int, ...]
) -> None:
    values = [moment.detach().to(device=slot.weight.device, dtype=slot.work) for moment in moments]
    encode(codec, rule.layout(shape), fresh, dict(zip(("exp_avg", "exp_avg_sq"), values, strict=True)), slot.draw(step))


def _fits(slot: Slot, state: State | None) -> bool:
    """Whether `state` may be of `slot`: its moments have the weight's shape, or those of a subspace of it."""
    if not state or not isinstance(state.get("exp_avg"), Tensor):
        return True
    shape, where = tuple(state["exp_avg"].shape), slot.geometry
    return shape == tuple(slot.param.shape) or (where is not None and shape == where.low_shape)


def _bases(slot: Slot, projector: Any) -> Bases | None:
    """The basis in a projector of galore_torch, which has rows for the right side; None if there is none that fits."""
    basis, where = getattr(projector, "ortho_matrix", None), slot.geometry
    if where is None or where.side == Side.BOTH or not isinstance(basis, Tensor):
        return None
    ((side, shape),) = where.basis_shapes.items()
    basis = (basis.mT if side == "right" else basis).detach().to(device=slot.weight.device, dtype=slot.work)
    if tuple(basis.shape) != shape:
        return None
    rest = basis.mT @ basis - torch.eye(shape[1], dtype=basis.dtype, device=basis.device)
    return {side: basis.contiguous()} if bool(rest.abs().max() <= _ORTHONORMAL) else None
