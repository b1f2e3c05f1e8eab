"""Derivatives of the rsvd family, as torch expressions.

The derivative is that of the exact truncated decomposition, which the random one approximates. For A of any rank
with leading triplets U, S, V and residual R = A - U S Vᵀ, differentiating A V = U S and Aᵀ U = V S splits every change
into a rotation inside the span, the textbook formula, and a change out of it, which solves

    dX S - R dY = (1 - UUᵀ) dA V,      dY S - Rᵀ dX = (1 - VVᵀ) dAᵀ U.

All of it is computed for A divided by a power of two near its first singular value, which changes neither U nor V and
no bit of the rest; so squares neither overflow nor vanish.
Neglecting R (as formulas for a full decomposition do) is wrong for a truncated one. The system is symmetric, so the
same solve serves the adjoint.
Source: Townsend, "Differentiating the singular value decomposition" (2016), eqs. 16-22; the residual term: Francuz,
Schuch, Vanhecke, "Stable and efficient differentiation of tensor network algorithms", arXiv 2311.11894.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_core.ops.declare import Op, declare, unchecked
from lowrank_core.ops.operators import torch_ops
from lowrank_core.ops.torch_autograd import Rules, multilinear

_MAX_ITERATIONS = 1000


class _Complement(torch.autograd.Function):
    """Solves X S - R Y = F, Y S - Rᵀ X = H with R = A - U S Vᵀ, by conjugate gradients on X."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, s: Tensor, v: Tensor, f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x, y = _solve(a, u, s, v, f, h)
        ctx.save_for_backward(a, u, s, v, x, y)
        return x, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, u, s, v, x, y = ctx.saved_tensors
        # For L(z; A) = b with symmetric L:  b̄ = L⁻¹ z̄,  Ā = -(∂/∂A) <L(z; A), b̄>.
        fbar, hbar = _complement(a, u, s, v, grads[0], grads[1])
        with torch.enable_grad():
            a, u, s, v = (t.detach().requires_grad_() for t in (a, u, s, v))
            left, right = _apply(a, u, s, v, x, y)
            inner = -(left * fbar.detach()).sum() - (right * hbar.detach()).sum()
            bars = torch.autograd.grad(inner, (a, u, s, v))
        return (*bars, fbar, hbar)


def _complement(a: Tensor, u: Tensor, s: Tensor, v: Tensor, f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x, y = _Complement.apply(a, u, s, v, f, h)  # type: ignore[no-untyped-call]
    return x, y


def _residual(a: Tensor, u: Tensor, s: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """R y with R = A - U S Vᵀ, never formed."""
    return a @ y - u @ (s.unsqueeze(-1) * (v.mT @ y))


def _apply(a: Tensor, u: Tensor, s: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    scale = s.unsqueeze(-2)
    return x * scale - _residual(a, u, s, v, y), y * scale - _residual(a.mT, v, s, u, x)


def _power_below(x: Tensor) -> Tensor:
    """The power of two below every positive number, a normal one that can be divided by; 1 for 0. A constant."""
    limits = torch.finfo(x.dtype)
    half = torch.where(x > 0, x.detach(), 1.0).clamp(4 * limits.tiny, limits.max) / 2
    return half / torch.frexp(half).mantissa


def _solve(a: Tensor, u: Tensor, s: Tensor, v: Tensor, f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Columns are independent, so each is solved at a size near 1; one of zeros is its own solution, whatever s."""
    size = torch.cat([f, h], dim=-2).abs().amax(dim=-2, keepdim=True)
    power, zero = _power_below(size), size == 0
    x, y = _solve_moderate(a, u, torch.where(zero.squeeze(-2), 1.0, s), v, f / power, h / power)
    return torch.where(zero, 0.0, x * power), torch.where(zero, 0.0, y * power)


def _solve_moderate(a: Tensor, u: Tensor, s: Tensor, v: Tensor, f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Eliminating Y leaves (s_i² - R Rᵀ) x_i = s_i f_i + R h_i: positive definite while s_i exceeds the residual."""
    scale = s.unsqueeze(-2)

    def operator(x: Tensor) -> Tensor:
        return x * scale**2 - _residual(a, u, s, v, _residual(a.mT, v, s, u, x))

    b = f * scale + _residual(a, u, s, v, h)
    x = torch.zeros_like(b)
    r, p = b, b
    rr = r.square().sum(-2, keepdim=True)
    floor = (torch.finfo(b.dtype).eps * 0.1) ** 2 * rr
    for _ in range(_MAX_ITERATIONS):
        active = rr > floor
        if not bool(active.any()):
            break
        ap = operator(p)
        alpha = torch.where(active, rr / (p * ap).sum(-2, keepdim=True), 0.0)
        x = x + alpha * p
        r = r - alpha * ap
        new = r.square().sum(-2, keepdim=True)
        p = r + torch.where(active, new / rr, 0.0) * p
        rr = new
    else:
        raise RuntimeError(
            "rsvd: the derivative did not converge: the last singular value kept is too close to the first one cut "
            "off; choose a rank with a gap behind it"
        )
    return x, (h + _residual(a.mT, v, s, u, x)) / scale


def _project_out(basis: Tensor, x: Tensor) -> Tensor:
    return x - basis @ (basis.mT @ x)


def svd_vjp(a: Tensor, u: Tensor, s: Tensor, v: Tensor, du: Tensor, ds: Tensor, dv: Tensor) -> Tensor:
    """Gradient with respect to `a` [..., m, n] given those of u, s and v; differentiable itself."""
    if s.shape[-1] == 0:
        return torch.zeros_like(a)
    power = _power_below(s[..., :1])
    within, across = _rotations(a / power.unsqueeze(-1), u, s / power, v, du, dv)
    inner = torch.diag_embed(ds) + within / power.unsqueeze(-1)
    x, y = (part / power.unsqueeze(-1) for part in across)
    da: Tensor = u @ inner @ v.mT + x @ v.mT + u @ y.mT
    return da


def _rotations(
    a: Tensor, u: Tensor, s: Tensor, v: Tensor, du: Tensor, dv: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What du and dv ask of `a`: by turning within the span, U [.] Vᵀ, and out of it, X Vᵀ + U Yᵀ."""
    # With F_ij = 1 / (s_j² - s_i²):  K = F ∘ (Uᵀdu - duᵀU),  L = F ∘ (Vᵀdv - dvᵀV).
    uu, vv = u.mT @ du, v.mT @ dv
    k, ell = uu - uu.mT, vv - vv.mT
    s2 = s.square()
    gap = s2.unsqueeze(-2) - s2.unsqueeze(-1)
    # Values as good as equal, and every value beside itself, need no rotation where none is asked for.
    idle = (gap.abs() < torch.finfo(s.dtype).tiny ** 0.5) & (k == 0) & (ell == 0)
    f = torch.where(idle, 0.0, 1.0 / torch.where(idle, 1.0, gap))
    within = f * k * s.unsqueeze(-2) + s.unsqueeze(-1) * (f * ell)
    return within, _complement(a, u, s, v, _project_out(u, du), _project_out(v, dv))


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def save_rsvd(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    u, s, vh = output
    ctx.save_for_backward(inputs[0], u, s, vh)


def rsvd_backward(ctx: Any, du: Tensor | None, ds: Tensor | None, dvh: Tensor | None) -> tuple[Tensor | None, ...]:
    a, u, s, vh = ctx.saved_tensors
    da = torch_ops().rsvd_backward(a, u, s, vh, _or_zeros(du, u), _or_zeros(ds, s), _or_zeros(dvh, vh))
    return da, None, None


def save_svd_lowrank(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    u, s, v = output
    ctx.save_for_backward(inputs[0], u, s, v)


def svd_lowrank_backward(
    ctx: Any, du: Tensor | None, ds: Tensor | None, dv: Tensor | None
) -> tuple[Tensor | None, ...]:
    a, u, s, v = ctx.saved_tensors
    grads = (_or_zeros(du, u), _or_zeros(ds, s), _or_zeros(dv, v).mT.contiguous())
    return torch_ops().rsvd_backward(a, u, s, v.mT.contiguous(), *grads), None, None


def save_factored_svd(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:2], *output)


def factored_svd_backward(ctx: Any, du: Tensor | None, ds: Tensor | None, dvh: Tensor | None) -> tuple[Tensor, Tensor]:
    b, a, u, s, vh = ctx.saved_tensors
    left, right = b.to(u.dtype), a.to(u.dtype)
    with torch.autocast(b.device.type, enabled=False):
        grads = (_or_zeros(du, u), _or_zeros(ds, s), _or_zeros(dvh, vh))
        dp = torch_ops().rsvd_backward(left @ right, u, s, vh, *grads)
        return (dp @ right.mT).to(b.dtype), (left.mT @ dp).to(a.dtype)


# ---- rsvd_backward, an operator of its own: a compiled graph holds the derivative as one node ----------------------


def _rsvd_backward(a: Tensor, u: Tensor, s: Tensor, vh: Tensor, du: Tensor, ds: Tensor, dvh: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return svd_vjp(a.to(u.dtype), u, s, vh.mT, du, ds, dvh.mT).to(a.dtype)


def save_rsvd_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def rsvd_backward_backward(ctx: Any, dda: Tensor) -> tuple[Tensor | None, ...]:
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "rsvd: has no second derivative under torch.func; take torch.autograd.grad with create_graph=True"
        )
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        return torch.autograd.grad(_rsvd_backward(*leaves), leaves, dda)


# ---- projection ----------------------------------------------------------------------------------------------------


def save_project(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.side = inputs[2]


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """Sums the leading dimensions that a plain matrix was broadcast over."""
    return x.sum_to_size(like.shape).to(like.dtype)


def project_backward(ctx: Any, dr: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    g, basis = ctx.saved_tensors
    dg = torch_ops().project_back(dr, basis, ctx.side) if ctx.needs_input_grad[0] else None
    db = _basis_gradient(g, dr, basis, ctx.side) if ctx.needs_input_grad[1] else None
    return dg, db, None


def project_back_backward(ctx: Any, dg: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    r, basis = ctx.saved_tensors
    dr = torch_ops().project(dg, basis, ctx.side) if ctx.needs_input_grad[0] else None
    db = _basis_gradient(dg, r, basis, ctx.side) if ctx.needs_input_grad[1] else None
    return dr, db, None


def _basis_gradient(full: Tensor, low: Tensor, basis: Tensor, side: str) -> Tensor:
    """Both directions pair the full matrix with the low one: <basisᵀ full, low> or <full basis, low>."""
    with torch.autocast(full.device.type, enabled=False):
        db = full @ low.mT if side == "left" else full.mT @ low
    return _sum_to(db, basis)


# ---- what the family's operators have ------------------------------------------------------------------------------

declare(
    "rsvd",
    Op(
        "rsvd_backward(Tensor a, Tensor u, Tensor s, Tensor vh, Tensor du, Tensor ds, Tensor dvh) -> Tensor",
        check=unchecked,
        outputs=lambda a, *_: torch.empty_like(a),
        kernel=_rsvd_backward,
        fills=False,
        leading=("a", "u", "s", "vh", "du", "ds", "dvh"),
    ),
)

RULES = {
    "rsvd": Rules(rsvd_backward, save_rsvd),
    "svd_lowrank": Rules(svd_lowrank_backward, save_svd_lowrank),
    "factored_svd": Rules(factored_svd_backward, save_factored_svd),
    "rsvd_backward": Rules(rsvd_backward_backward, save_rsvd_backward),
    "project": Rules(project_backward, save_project, multilinear),
    "project_back": Rules(project_back_backward, save_project, multilinear),
}
