"""Every function of the family `dct_select` behind one call, and what its results are held to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import lowrank_core
import numpy as np
import torch
from lowrank_core.reference import dct_select as reference
from testing import cases, tolerance
from torch import Tensor

BASES = ("dct2", "dct3", "identity", "hadamard")
SIDES = ("left", "right")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def indices_like(a: Any, *values: int) -> Any:
    """One list of indices for each matrix of a batch, of the kind of `a`."""
    batch = tuple(a.shape[:-2])
    if isinstance(a, Tensor):
        return torch.tensor(values, device=a.device).expand(*batch, len(values)).contiguous()
    return np.ascontiguousarray(np.broadcast_to(np.array(values), (*batch, len(values))))


@cache
def _atoms(n: int) -> Tensor:
    """Once, since LAPACK's bits depend on its threads."""
    return cases.orthonormal(n, n, seed=5)


def _orthogonal(a: Any, n: int) -> Any:
    q = _atoms(n)
    return q.to(a.dtype).to(a.device) if isinstance(a, Tensor) else q.numpy().astype(a.dtype)


def _select(basis: str, side: str, norm_ord: int = 2) -> Callable[[Any], Any]:
    return lambda a: lowrank_core.dct_select(a[..., :64, :64], 9, basis=basis, side=side, norm_ord=norm_ord)[:3]


def _feedback(a: Any) -> Any:
    residual = a.clone() if isinstance(a, Tensor) else a.copy()
    return (*lowrank_core.dct_select_feedback_(residual, a, 9, keep=0.5)[:3], residual)


# Arrays [..., m, n] with m, n >= 64 in, arrays out.
CALLS: dict[str, Callable[[Any], Any]] = {
    "dct": lowrank_core.dct,
    "dct_columns": lambda a: lowrank_core.dct(a, dim=-2),
    "idct": lowrank_core.idct,
    "idct_awkward": lambda a: lowrank_core.idct(a[..., :59, :][..., :53]),
    "feedback": _feedback,
    "magnitudes": _select("dct2", "right", 1),
    "custom": lambda a: lowrank_core.dct_select(a, 9, basis=_orthogonal(a, a.shape[-1]), side="right")[:3],
    "rotate": lambda a: lowrank_core.rotate_moments(
        a[..., :5], a[..., 5:10], indices_like(a, 1, 4, 6, 7, 9), indices_like(a, 0, 4, 7, 8), side="right"
    ),
} | {f"{basis}_{side}": _select(basis, side) for basis in BASES for side in SIDES}
for _side, _take in (("right", lambda a: a[..., :4]), ("left", lambda a: a[..., :4, :])):
    CALLS[f"back_{_side}"] = lambda a, side=_side, take=_take: lowrank_core.dct_project_back(
        take(a), indices_like(a, 0, 3, 11, 30), 66, side=side
    )


def arrays(out: Any) -> tuple[Any, ...]:
    """The arrays of a result as a tuple."""
    return tuple(out) if isinstance(out, tuple) else (out,)


def assert_lines(ours: Tensor, exact: Tensor, x: Tensor, *, dim: int = -1) -> None:
    """Each line of a transform of x: the bound of a fast transform, and one rounding to the dtype."""
    n = x.shape[dim]
    assert ours.shape == exact.shape
    if ours.numel() == 0:
        return
    size = x.double().norm(dim=dim)
    error = (ours.double() - exact).norm(dim=dim)
    computed = tolerance.transform(n, ours.dtype) * size
    rounded = tolerance.UNIT[ours.dtype] * (size + computed) + n * torch.finfo(ours.dtype).smallest_normal
    assert bool((error <= computed + rounded).all()), float((error / (computed + rounded)).max())


def assert_selection(g: Tensor, ours: Any, rank: int, *, basis: Any, side: str, norm_ord: int = 2) -> None:
    """Against the reference: indices where the scores are clearly apart, coordinates, the share captured."""
    indices, coeffs, captured, where = ours
    assert where == side and indices.dtype == torch.int64 and captured.dtype == torch.float64
    s = reference.spectrum(g, basis, side)
    n, other = (s.shape[-2], s.shape[-1]) if side == "left" else (s.shape[-1], s.shape[-2])
    assert bool((indices.diff(dim=-1) > 0).all()) and indices.shape == (*g.shape[:-2], rank)
    if rank == 0 or s.numel() == 0:
        return
    norm = tolerance.norm(g)
    off = tolerance.transform(n, g.dtype) * norm
    if isinstance(basis, Tensor):  # a product, with atoms of n entries
        off = max(off, tolerance.gamma(n + 2, tolerance.factor_dtype(g.dtype)) * norm)
    scores = reference.scores(s, side, norm_ord)
    # A sum of squares moves by 2 sqrt(e) off + off², one of magnitudes by sqrt(other) off.
    slack = 2 * scores.sqrt() * off + off**2 if norm_ord == 2 else torch.full_like(scores, other**0.5 * off)
    least = (scores - slack).sort(dim=-1, descending=True).values[..., rank - 1 : rank]
    assert bool(((scores + slack).gather(-1, indices) >= least).all())
    expected = reference.dct_select(g, rank, basis=basis, side=side, norm_ord=norm_ord)
    ordered = scores.sort(dim=-1, descending=True).values
    if rank < n and bool((ordered[..., rank - 1] - ordered[..., rank] > 2 * slack.max()).all()):
        assert torch.equal(indices, expected[0])
    axis = -2 if side == "left" else -1
    picked = indices.unsqueeze(-1 if side == "left" else -2).expand(coeffs.shape)
    exact = s.gather(axis, picked)
    rounding = tolerance.UNIT[g.dtype] * (tolerance.norm(exact) + off)
    rounding += exact.numel() * torch.finfo(g.dtype).smallest_normal
    assert tolerance.norm(coeffs.double() - exact) <= off + rounding
    share = reference.scores(s, side, 2).gather(-1, indices).sum(-1) / reference.scores(s, side, 2).sum(-1)
    relative = 4 * off / norm if norm else 0.0  # numerator and denominator each move by 2 off norm at most
    assert bool(((captured - share).abs() <= relative + (off / norm) ** 2 if norm else captured == 1).all())
    assert bool(((captured >= 0) & (captured <= 1)).all())
