"""Problems of the family `chain_lr`."""

from __future__ import annotations

from typing import Any

import lowrank_core
import torch
from lowrank_core.reference import chain_lr as reference
from testing import cases, chain_bounds
from torch import Tensor

NAMES = ("queries", "keys", "values", "dout", "a", "b")
SCORE_ROWS, SCORE_COLS, PAD = 16, 256, 32  # of a tile of scores


def normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(cases.generator(seed, *shape).standard_normal(shape))


def attention(
    length: int,
    count: int | None = None,
    d_q: int = 5,
    d_k: int = 6,
    d_v: int = 4,
    rank: int = 3,
    *,
    lead: tuple[int, ...] = (),
    kv_lead: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    size: float = 0.3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Tensors of a problem; `size`: of a query."""
    count = length if count is None else count
    kv = lead if kv_lead is None else kv_lead
    shapes = {
        "queries": (*lead, length, d_q),
        "keys": (*kv, count, d_k),
        "values": (*kv, count, d_v),
        "dout": (*lead, length, d_v),
        "a": (rank, d_k),
        "b": (d_q, rank),
        "weight": (d_q, d_k),
    }
    tensors = {name: normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    tensors["queries"] *= size
    return {name: t.to(dtype) for name, t in tensors.items()}


def grad(tensors: dict[str, Any], **options: Any) -> Any:
    positional = [tensors[name] for name in NAMES]
    return lowrank_core.attention_lora_grad(*positional, weight=tensors["weight"], **options)


def exact(tensors: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """The reference."""
    positional = [tensors[name] for name in NAMES]
    return reference.attention_lora_grad(*positional, weight=tensors["weight"], **options)


def relative(found: Any, expected: tuple[Tensor, Tensor]) -> float:
    """Relative Frobenius error of (da, db) together."""
    pairs = list(zip(found[:2], expected, strict=True))
    error = sum(float((torch.as_tensor(x).double() - y).square().sum()) for x, y in pairs)
    size = sum(float(y.square().sum()) for _, y in pairs)
    return (error / size) ** 0.5 if size else float(error > 0)


def assert_exact(tensors: dict[str, Tensor], *, scale: float = 0.7, causal: bool = False, **options: Any) -> None:
    """One head: within the derived bound of the reference."""
    found = grad(tensors, scale=scale, causal=causal, **options)
    expected = exact(tensors, scale=scale, causal=causal, **options)
    shape = (tensors["queries"].shape[-2], tensors["keys"].shape[-2])
    hidden = torch.ones(shape, dtype=torch.bool).triu(1) if causal else torch.zeros(shape, dtype=torch.bool)
    if options.get("key_mask") is not None:
        hidden = hidden | ~options["key_mask"][None, :]
    bounds = chain_bounds.attention(tensors, scale, hidden, found[:2])
    for name, x, y, bound in zip(("da", "db"), found[:2], expected, bounds, strict=True):
        assert x.dtype == tensors["a"].dtype and chain_bounds.within(x, y, bound), name
    assert float(found.error_bound) == 0.0


def bytes_of(found: Any) -> tuple[Any, ...]:
    return tuple(found[:2])
