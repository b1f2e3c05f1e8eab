"""Memory before a run: bytes of optimizer state from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from lowrank_core.optim.checks import require
from lowrank_core.optim.galore import GaLoreAdamW
from lowrank_core.optim.geometry import place
from lowrank_core.optim.groups import EXCLUDED, param_groups
from lowrank_core.optim.targets import ALL_LINEAR

_OP = "estimate_state_bytes"
_CLASSES: dict[str, type[GaLoreAdamW]] = {"galore": GaLoreAdamW}
_TO_COME = (
    "qgalore",
    "adarankgrad",
    "dct",
    "trion",
    "dion2",
    "fira",
    "frugal",
    "flora",
    "coap",
    "apollo",
    "ldadam",
    "lisa",
)
_STEP_BYTES = 4  # torch's count of steps is a float32

Shape = Iterable[int]


def estimate_state_bytes(
    model_or_shapes: nn.Module | Mapping[str, Shape] | Iterable[Shape],
    optimizer: str = "galore",
    *,
    rank: int = 128,
    dtype: torch.dtype | None = None,
    target_modules: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    **group_keys: Any,
) -> int:
    """Bytes of state that `optimizer` holds once every parameter has taken a step, exact to the byte.

    Equals `optimizer.state_bytes()` of the run ("galore"), or what torch.optim.AdamW holds ("adamw").

    Args:
      model_or_shapes: a module, whose trainable parameters are split as by `param_groups`; or shapes by name,
        of which those with a word of `exclude` in their name are for plain AdamW; or shapes alone, none
        excluded.
      optimizer: "adamw" or "galore".
      rank: of the optimizers that have one.
      dtype: of the weights; None means the module's own, or float32 for shapes.
      target_modules, exclude: as in `param_groups`; the former for a module only, the latter not for shapes
        alone.
      group_keys: as in `param_groups`, such as `proj_type`.

    Raises:
      ValueError: an unknown name, or an argument that has no meaning for `model_or_shapes`.
      NotImplementedError: an optimizer that this version does not have yet.

    Example:
      >>> from lowrank_core.optim import estimate_state_bytes
      >>> shapes = {"up.weight": (11008, 4096), "down.weight": (4096, 11008)}
      >>> adamw = estimate_state_bytes(shapes, "adamw")
      >>> adamw, round(estimate_state_bytes(shapes, "galore", rank=128) / adamw, 3)
      (721420296, 0.037)
    """
    known = ("adamw", *_CLASSES)
    if optimizer in _TO_COME:
        raise NotImplementedError(
            f"{_OP}: `optimizer` must be one of {', '.join(known)} in this version, got {optimizer!r}"
        )
    require(optimizer in known, _OP, "optimizer", f"be one of {', '.join(known)}", optimizer)
    named = isinstance(model_or_shapes, (nn.Module, Mapping))
    require(named or exclude is None, _OP, "exclude", "be left out where shapes have no names", exclude)
    whole = isinstance(model_or_shapes, nn.Module)
    require(whole or target_modules is None, _OP, "target_modules", "be left out without a module", target_modules)
    if optimizer == "adamw":
        return sum(2 * w.numel() * w.element_size() + _STEP_BYTES for _, w in _named_weights(model_or_shapes, dtype))
    words = EXCLUDED if exclude is None else (exclude,) if isinstance(exclude, str) else tuple(exclude)
    keys = {"rank": rank, **group_keys}
    if isinstance(model_or_shapes, nn.Module):
        groups = param_groups(model_or_shapes, target_modules or ALL_LINEAR, words, verbose=False, **keys)
        for group in groups:
            group["params"] = [(name, _meta(p.shape, dtype or p.dtype)) for name, p in group["params"]]
    else:
        weights = dict(_named_weights(model_or_shapes, dtype))
        excluded = {name for name in weights if named and any(word in name for word in words)}
        plain = [(name, weight) for name, weight in weights.items() if name in excluded]
        projected = [(name, weight) for name, weight in weights.items() if name not in excluded]
        groups = [{"params": plain}, {"params": projected, **keys}]
    return _CLASSES[optimizer]([g for g in groups if g["params"]], rank=None).planned_state_bytes()


def formula_state_bytes(
    projected: Iterable[Shape],
    others: int,
    *,
    rank: int,
    proj_type: str = "std",
    basis_bytes: float = 2,
    moment_bytes: float = 2,
    other_bytes: float = 2,
) -> float:
    """The published accounting: bases and moments alone, at any width.

    sum over projected weights of basis_bytes s r + 2 moment_bytes l r, and 2 other_bytes for every other
    parameter. Counts no step counters and no scales of quantized blocks, so it is no estimate of a run: that
    is `estimate_state_bytes`.

    Args:
      projected: shapes of the projected weights, rank below min(m, n).
      others: how many parameters all others have together.
      rank, proj_type: as in the optimizer.
      basis_bytes, moment_bytes, other_bytes: bytes per element of a basis, of a moment of a projected weight,
        and of a moment of the others.

    Source: the accounting behind the memory figures of COAP (arXiv:2412.00071), which it reproduces.

    Example:
      >>> from lowrank_core.optim import formula_state_bytes
      >>> formula_state_bytes([(11008, 4096)], others=0, rank=128)
      6684672
    """
    total = 2 * others * other_bytes
    for shape in projected:
        where, note = place(tuple(shape), rank, proj_type)
        if where is None:
            raise ValueError(f"formula_state_bytes: `projected` must be projectable, got {tuple(shape)}: {note}")
        total += sum(prod(basis) for _, _, basis in where.bases()) * basis_bytes
        total += 2 * prod(where.low_shape) * moment_bytes
    return total


def _named_weights(
    model_or_shapes: nn.Module | Mapping[str, Shape] | Iterable[Shape], dtype: torch.dtype | None
) -> list[tuple[str, torch.Tensor]]:
    if isinstance(model_or_shapes, nn.Module):
        named = model_or_shapes.named_parameters()
        return [(name, _meta(p.shape, dtype or p.dtype)) for name, p in named if p.requires_grad]
    shapes = model_or_shapes.items() if isinstance(model_or_shapes, Mapping) else enumerate(model_or_shapes)
    return [(str(name), _meta(shape, dtype or torch.float32)) for name, shape in shapes]


def _meta(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")  # a shape and a dtype, no memory
