"""Every function of the package that takes tensors, as a function of floating-point tensors alone, and what its
derivatives are. A new function or operator without a row here fails `test_derivatives.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chain_cases
import int4_cases
import kalman_cases
import lowrank_core as lc
import torch
from lowrank_core.ops import qb_list, range_finder_list
from lowrank_core.reference import chain_lr, dct_select, kalman_diag, rsvd
from testing import cases
from torch import Tensor

Call = Callable[..., Any]


class Case(NamedTuple):
    """`call` of `inputs`: floating-point tensors, the first outputs of which are floating as well.

    `exact`: the same as plain torch expressions. `reverse`, `forward`: whether it has these derivatives; where not, it
    says so. `ops`: the operators behind it.
    """

    call: Call
    inputs: tuple[Tensor, ...]
    ops: tuple[str, ...]
    exact: Call | None = None
    reverse: bool = False
    forward: bool = False


def floats(out: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors of a result, in order."""
    parts = out if isinstance(out, (tuple, list)) else (out,)
    return tuple(x for x in parts if isinstance(x, Tensor) and x.is_floating_point())


def _flat(parts: list[Any]) -> tuple[Any, ...]:
    return tuple(x for part in parts for x in part)


A, B, TALL = cases.decaying(6, 5), cases.decaying(5, 4, seed=3), cases.gaussian(6, 3, seed=4)
BASIS, ATOMS = cases.gaussian(6, 2, seed=5), cases.orthonormal(5, 5)
OLD, NEW = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
X, W, LA, LB = (
    cases.gaussian(4, 6, seed=6),
    cases.gaussian(5, 6, seed=7),
    cases.gaussian(2, 6, seed=8),
    cases.gaussian(5, 2, seed=9),
)
U, S, V, BIAS = LB.clone(), cases.gaussian(2, 2, seed=10), LA.mT.clone(), cases.gaussian(1, 5, seed=11)[0]
ATTENTION = tuple(chain_cases.attention(4, size=0.1)[name] for name in (*chain_cases.NAMES, "weight"))
FILTER = kalman_cases.make(3, 7)
NOISE = torch.eye(3, dtype=torch.float64) + 0.1
INT4 = int4_cases.basis(40, 3)


def attention(queries: Tensor, keys: Tensor, values: Tensor, dout: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Any:
    return lc.attention_lora_grad(queries, keys, values, dout, a, b, weight=w)


def featured(queries: Tensor, keys: Tensor, values: Tensor, dout: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Any:
    """Through a callable, which is given operands that depend on the tensors."""
    make = lambda q, k: lc.positive_features(q, k, count=4096)  # noqa: E731
    return lc.attention_lora_grad(queries, keys, values, dout, a, b, weight=w, method="chained", features=make)


def packed(scales: Tensor, offsets: Tensor) -> lc.Int4Matrix:
    return INT4._replace(scales=scales.bfloat16(), offsets=offsets.bfloat16())


CASES: dict[str, Case] = {
    # ---- linear, or linear in each argument ----
    "dct": Case(lc.dct, (A,), ("dct",), dct_select.dct, True, True),
    "dct of columns": Case(lambda x: lc.dct(x, dim=0), (A,), ("dct",), lambda x: dct_select.dct(x, dim=0), True, True),
    "idct": Case(lc.idct, (A,), ("idct",), dct_select.idct, True, True),
    "project": Case(
        lambda g, p: lc.project(g, p, side="left"),
        (A, BASIS),
        ("project",),
        lambda g, p: rsvd.project(g, p, side="left"),
        True,
        True,
    ),
    "project_back": Case(
        lambda r, p: lc.project_back(r, p, side="right"),
        (cases.gaussian(4, 2), BASIS),
        ("project_back",),
        lambda r, p: rsvd.project_back(r, p, side="right"),
        True,
        True,
    ),
    "int4_project": Case(
        lambda g: lc.int4_project(INT4, g),
        (cases.gaussian(40, 2),),
        ("int4_project",),
        lambda g: lc.dequantize_int4(INT4, torch.float64).mT @ g,
        True,
        True,
    ),
    "int4_project_back": Case(
        lambda r: lc.int4_project_back(INT4, r),
        (TALL[:3],),
        ("int4_project_back",),
        lambda r: lc.dequantize_int4(INT4, torch.float64) @ r,
        True,
        True,
    ),
    "dct_project_back": Case(
        lambda c: lc.dct_project_back(c, OLD, 5, side="right"),
        (TALL,),
        ("dct_project_back",),
        lambda c: dct_select.dct_project_back(c, OLD, 5, side="right"),
        forward=True,
    ),
    "dct_project_back of atoms": Case(
        lambda c, q: lc.dct_project_back(c, OLD, 5, side="left", basis=q),
        (TALL.mT.contiguous(), ATOMS),
        ("dct_project_back",),
        lambda c, q: q[:, OLD] @ c,
        forward=True,
    ),
    "rotate_moments": Case(
        lambda m, v: lc.rotate_moments(m, v, OLD, NEW, side="right"),
        (TALL, TALL.square()),
        ("rotate_moments",),
        lambda m, v: dct_select.rotate_moments(m, v, OLD, NEW, side="right"),
        forward=True,
    ),
    "chain_matmul": Case(
        lambda a, b, c: lc.chain_matmul([a, b, c]),
        (A, B, TALL[:4]),
        ("chain_matmul",),
        lambda a, b, c: a @ b @ c,
        True,
        True,
    ),
    "lora_linear": Case(
        lambda x, w, a, b, c: lc.lora_linear(x, w, a, b, scale=0.5, bias=c),
        (X, W, LA, LB, BIAS),
        ("lora_linear", "lora_linear_backward"),
        lambda x, w, a, b, c: chain_lr.lora_linear(x, w, a, b, scale=0.5, bias=c),
        True,
        True,
    ),
    "lora_linear without a weight": Case(
        lambda x, a, b, c: lc.lora_linear(x, None, a, b, scale=0.5, bias=c),
        (X, LA, LB, BIAS),
        ("lora_linear", "lora_linear_backward"),
        lambda x, a, b, c: chain_lr.lora_linear(x, None, a, b, scale=0.5, bias=c),
        True,
        True,
    ),
    "usv_linear without a weight": Case(
        lambda x, s, c: lc.usv_linear(x, None, U, s, V, scale=0.5, bias=c),
        (X, S, BIAS),
        ("usv_linear", "usv_linear_backward"),
        lambda x, s, c: chain_lr.usv_linear(x, None, U, s, V, scale=0.5, bias=c),
        True,
        True,
    ),
    "usv_linear": Case(
        lambda x, w, s, c: lc.usv_linear(x, w, U, s, V, scale=0.5, bias=c),
        (X, W, S, BIAS),
        ("usv_linear", "usv_linear_backward"),
        lambda x, w, s, c: chain_lr.usv_linear(x, w, U, s, V, scale=0.5, bias=c),
        True,
        True,
    ),
    # ---- reverse mode alone ----
    "rsvd": Case(lambda a: tuple(lc.rsvd(a, 2, oversample=9)), (A,), ("rsvd", "rsvd_backward"), reverse=True),
    "rsvd with a basis": Case(
        lambda a: tuple(lc.rsvd(a, 2, basis=BASIS, oversample=9)), (A,), ("rsvd", "rsvd_backward"), reverse=True
    ),
    "svd_lowrank": Case(lambda a: lc.svd_lowrank(a, 4), (A,), ("svd_lowrank",), reverse=True),
    "factored_svd": Case(lambda b, a: tuple(lc.factored_svd(b, a)), (A, B), ("factored_svd",), reverse=True),
    "kalman_diag_gain": Case(
        lc.kalman_diag_gain, (FILTER.p, FILTER.jac, NOISE), ("kalman_diag_gain",), kalman_diag.kalman_diag_gain, True
    ),
    # ---- none ----
    "range_finder": Case(lambda a: lc.range_finder(a, 2), (A,), ("range_finder",)),
    "range_finder with a basis": Case(lambda a, p: lc.range_finder(a, 2, basis=p), (A, BASIS), ("range_finder",)),
    "orthonormalize": Case(lc.orthonormalize, (TALL,), ("orthonormalize",)),
    "dct_select": Case(lambda g: tuple(lc.dct_select(g, 2)[1:3]), (A,), ("dct_select",)),
    "dct_select of atoms": Case(
        lambda g, q: tuple(lc.dct_select(g, 2, basis=q, side="right")[1:3]), (A, ATOMS), ("dct_select",)
    ),
    "quantize_int4": Case(lambda x: lc.quantize_int4(x, group_size=32)[1:3], (A,), ("quantize_int4",)),
    "dequantize_int4": Case(
        lambda scales, offsets: lc.dequantize_int4(packed(scales, offsets)),
        (INT4.scales.double(), INT4.offsets.double()),
        ("dequantize_int4",),
    ),
    "int4_project of its scales": Case(
        lambda scales, offsets: lc.int4_project(packed(scales, offsets), torch.ones(40, 2)),
        (INT4.scales.double(), INT4.offsets.double()),
        ("int4_project",),
    ),
    "int4_project_back of its scales": Case(
        lambda scales, offsets: lc.int4_project_back(packed(scales, offsets), torch.ones(3, 2)),
        (INT4.scales.double(), INT4.offsets.double()),
        ("int4_project_back",),
    ),
    "kalman_diag_step": Case(lc.kalman_diag_step, tuple(FILTER), ("kalman_diag_step",)),
    "attention_lora_grad": Case(attention, ATTENTION, ("attention_lora_grad",)),
    "attention_lora_grad with features": Case(featured, ATTENTION, ("attention_lora_grad", "attention_operands")),
    "positive_features": Case(lc.positive_features, (X, W), ("positive_features",)),
}

# Plain functions: their results' shapes depend on the data. No derivative, and no torch.vmap.
PLAIN: dict[str, Case] = {
    "qb": Case(lambda a: lc.qb(a, energy=0.9), (A,), ()),
    "qb_list": Case(lambda a: _flat(qb_list([A, a], energy=0.9)), (A,), ()),
    "augment_truncate": Case(
        lambda u, s, v, gv, gu: _flat(lc.augment_truncate([u], [s], [v], [gv], [gu], lr=0.1, tol=0.0, max_rank=4)),
        (cases.orthonormal(5, 2), S, cases.orthonormal(6, 2), LB, LA.mT),
        (),
    ),
    "augment_truncate with gs": Case(
        lambda gs: _flat(
            lc.augment_truncate(
                [cases.orthonormal(5, 2)],
                [S],
                [cases.orthonormal(6, 2)],
                [LB],
                [LA.mT],
                gs=[gs],
                lr=0.1,
                tol=0.0,
                max_rank=4,
            )
        ),
        (S,),
        (),
    ),
    "range_finder_list": Case(lambda a, p: range_finder_list([a, A], [2, 2], bases=[p, None]), (A, BASIS), ()),
}

# They write to their arguments.
IN_PLACE: dict[str, Case] = {
    "dct_select_feedback_": Case(
        lambda r, g: lc.dct_select_feedback_(r, g, 2)[1:3], (torch.zeros_like(A), A), ("dct_select_feedback_",)
    ),
    "kalman_diag_step_": Case(lc.kalman_diag_step_, tuple(FILTER), ("kalman_diag_step_",)),
    "kalman_diag_step_ of lists": Case(
        lambda *f: lc.kalman_diag_step_(*([x] for x in f)), tuple(FILTER), ("kalman_diag_step_",)
    ),
    "subspace_step_": Case(
        lambda w, g, p, m, v: lc.subspace_step_([w], [g], [p], [m], [v], sides=["left"], steps=[1], lr=0.1),
        (A, A + 1, BASIS, torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)),
        ("subspace_step_",),
    ),
}
ALL = {**CASES, **PLAIN, **IN_PLACE}


def function_of(name: str) -> str:
    """The public function that a row is about."""
    return name.split(" ")[0]
