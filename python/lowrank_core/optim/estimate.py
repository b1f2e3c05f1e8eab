"""Memory before a run, of modules too: bytes of optimizer state."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.checks import require
from lowrank_core.memory import estimate as memory
from lowrank_core.memory.estimate import DECIDING, OP, Counted, Keys, Shapes, Weight
from lowrank_core.memory.geometry import Rank
from lowrank_core.memory.methods import FACADES
from lowrank_core.memory.methods import METHODS as METHODS_IN_MEMORY
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.memory.training import TrainingBytes, training_bytes, weight_bytes
from lowrank_core.optim.devices import can_draw
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.experts import AUTO, Stacked
from lowrank_core.optim.groups import split
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.methods import METHODS
from lowrank_core.optim.targets import ALL_LINEAR


def estimate_state_bytes(
    model_or_shapes: nn.Module | Shapes,
    optimizer: str = "galore",
    *,
    rank: Rank | None = 128,
    dtype: torch.dtype | str | None = None,
    target_modules: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    others: Mapping[str, Any] | None = None,
    stacked: Stacked | None = None,
    **keys: Any,
) -> int:
    """Bytes of state that `optimizer` holds once every parameter has taken a step, exact to the byte.

    Equals `optimizer.state_bytes()` of the run, or what torch.optim.AdamW holds ("adamw").
    `lowrank_core.memory.estimate_state_bytes` does the same for shapes and needs no torch.

    Args:
      model_or_shapes: a module, on the meta device too, whose trainable parameters are split as by `param_groups`; or
        shapes by name, where a name with a word of `exclude` means plain AdamW; or shapes alone, of which none is
        excluded.
      optimizer: "adamw", or one of `METHODS`; or "lisa", over AdamW, of `active` (2) layers.
      rank: of the projection, for optimizers that have one; None means their own default.
      dtype: of the weights; None means the module's own, or float32 for shapes.
      target_modules, exclude: as in `param_groups`; the former for a module only, the latter not for shapes
        alone.
      others: as in `param_groups`: keys only for the weights that are not projected; for a module only.
      stacked: as there; for shapes without "auto". None: "auto" for a module, False for shapes.
      keys: as given to the optimizer, such as `proj_type` or `moment_dtype`.

    Raises:
      TypeError: a key that the optimizer does not have.
      ValueError: an unknown name, a value out of its range, or an argument that has no meaning for
        `model_or_shapes`.

    Example:
      >>> from lowrank_core.optim import estimate_state_bytes
      >>> shapes = {"up.weight": (11008, 4096), "down.weight": (4096, 11008)}
      >>> adamw = estimate_state_bytes(shapes, "adamw")
      >>> adamw, round(estimate_state_bytes(shapes, "galore", rank=128) / adamw, 3)
      (721420296, 0.037)
    """
    memory.require_optimizer(optimizer)
    name = dtype if dtype is None or isinstance(dtype, str) else name_of(dtype)
    deciding = _deciding(optimizer, keys, others or {})
    if isinstance(model_or_shapes, nn.Module):
        words = EXCLUDED if exclude is None else exclude
        targets = ALL_LINEAR if target_modules is None else target_modules
        if name is not None:
            memory.require_dtype(name)
        if optimizer == "adamw":
            return sum(memory.adamw_bytes(_weight(p, name)) for p in model_or_shapes.parameters() if p.requires_grad)
        if optimizer in FACADES:
            trained = ((key, p) for key, p in model_or_shapes.named_parameters() if p.requires_grad)
            return memory.facade_bytes([(key, _weight(p, name), 1) for key, p in trained], deciding)
        asked = memory.keys_of(optimizer, rank, **deciding)
        stacked = AUTO if stacked is None else stacked
        found = _split(optimizer, model_or_shapes, name, targets, words, others, stacked, asked)
        return memory.all_bytes(optimizer, *found)
    for arg, value in (("target_modules", target_modules), ("others", others)):
        require(value is None, OP, arg, "be left out without a module", value)
    shapes, name = model_or_shapes, "float32" if name is None else name
    stacked = False if stacked is None else stacked
    return memory.estimate_state_bytes(
        shapes, optimizer, rank=rank, dtype=name, exclude=exclude, stacked=stacked, **deciding
    )


def _deciding(optimizer: str, keys: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `keys` that decide bytes. Raises for the keys and values that the optimizer would refuse."""
    if optimizer == "adamw":
        names = ", ".join([*keys, *others])
        require(not names, OP, "keys", "be left out for adamw, whose state they do not change", names)
    elif optimizer in FACADES:
        require(not others, OP, "others", f"be left out for {optimizer}, whose state they do not change", [*others])
        return keys
    else:
        made: Any = METHODS[optimizer]
        for given in (keys, {**keys, **others}):
            made([torch.empty(0, device="meta")], rank=None, **given)
    own = () if optimizer == "adamw" else METHODS_IN_MEMORY[optimizer].deciding
    return {key: value for key, value in keys.items() if key in DECIDING or key in own}


def training_bytes_of(
    model: nn.Module,
    optimizer: str,
    dtype: str | None = None,
    rank: Rank | None = None,
    int8_weights: bool = False,
    **keys: Any,
) -> TrainingBytes:
    """The bytes of weights, gradients and state that training `model` holds, split as by `param_groups`.

    Args:
      model: on the meta device, too.
      optimizer, dtype, rank, keys: as in `estimate_state_bytes`.
      int8_weights: True: every `nn.Linear` that `param_groups` does not exclude is to become an `Int8Linear`.

    Raises:
      TypeError, ValueError: as there.
    """
    params = dict(model.named_parameters())
    coded = _linear(model) if int8_weights else set()
    frozen = sum(weight_bytes(_weight(p, dtype)) for p in params.values() if not p.requires_grad)
    own = _deciding(optimizer, keys, {})
    if optimizer in METHODS_IN_MEMORY:
        asked = memory.keys_of(optimizer, rank, **own)
        found, held_by = _split(optimizer, model, dtype, ALL_LINEAR, EXCLUDED, None, AUTO, asked, coded)
    else:
        found, held_by = [(key, _weight(p, dtype), 1) for key, p in params.items() if p.requires_grad], []
    held = training_bytes(optimizer, found, held_by, own)
    return held._replace(weights=held.weights + frozen)


def _split(
    optimizer: str,
    model: nn.Module,
    dtype: str | None,
    targets: str | Iterable[str],
    exclude: str | Iterable[str],
    others: Mapping[str, Any] | None,
    stacked: Stacked,
    keys: Keys,
    coded: Container[Tensor] = (),
) -> tuple[list[Counted], list[Keys]]:
    """What `param_groups` makes of `model`, with the keys of each weight; those in `coded` are to be in 8 bits."""
    sides = {"proj_type": keys.proj_type, "force_projection": keys.force_projection}
    groups, _ = split(OP, model, targets, exclude, keys.rank, others, stacked, sides)
    weights: list[Counted] = []
    held_by: list[Keys] = []
    for group in groups:
        for name, param in group["params"]:
            weight = name, _weight(param, dtype, param in coded), 1
            weights.append(memory.matrices(weight, len(param) if "stacked" in group else None))
        held_by += [keys.plain(others) if group["rank"] is None else keys] * len(group["params"])
    return weights, held_by


def targets_of(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """What `param_groups` projects at rank 1, which is all that it projects at any, with the shape of its matrix."""
    groups, _ = split(OP, model, ALL_LINEAR, EXCLUDED, 1, None, AUTO, {})
    taken = [(param, "stacked" in group) for group in groups if group["rank"] for _, param in group["params"]]
    return {param: tuple(param.shape[1:] if stacked else param.shape) for param, stacked in taken}


def _linear(model: nn.Module) -> set[Tensor]:
    """Those of linear layers among the targets."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Linear)} & set(targets_of(model))


def _weight(param: Tensor, dtype: str | None, coded: bool = False) -> Weight:
    name, int8 = dtype or name_of(param.dtype), coded or isinstance(param, Int8Weight)
    return Weight(tuple(param.shape), name, can_draw(param.device), int8)
