"""Layers with a low-rank part beside a linear layer of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.products import with_product
from lowrank_core.adapters.quantized import is_quantized
from lowrank_core.checks import is_count, is_number, require
from lowrank_core.ops.chain_lr import lora_linear, usv_linear


class LoRALinear(nn.Module):
    """A linear layer and a low-rank part beside it: x Wᵀ + bias + scale (x Aᵀ) Bᵀ.

    W and bias are those of `base`, frozen; a base of another class, such as a quantized layer, computes its part itself
    and cannot be merged with. `lora_A` [rank, in] starts as torch.nn.Linear's weight does, `lora_B`
    [out, rank] at zero, so the layer starts as `base`. They have the base's dtype where it trains, else float32.
    `init_lora_` may put `lora_S` [rank, rank] between them: then B S takes the place of B, and S alone trains.

    Args:
      base: torch.nn.Linear, or a quantized layer that is one.
      rank: from 1 to min(in, out).
      alpha: the scale is alpha / rank; None: 1. A number apart from 0.

    Raises:
      TypeError: `base` is no torch.nn.Linear. ValueError: a value out of its range.

    Source: Hu et al. 2021 (arXiv:2106.09685).

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> layer = adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2, alpha=4)
      >>> layer(torch.ones(3, 6)).shape, [name for name, p in layer.named_parameters() if p.requires_grad]
      (torch.Size([3, 4]), ['lora_A', 'lora_B'])
    """

    def __init__(self, base: nn.Linear, rank: int, *, alpha: float | None = None) -> None:
        super().__init__()
        self.base_layer, self.scaling, dtype = _checked_base(type(self).__name__, base, rank, alpha)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=device))
        self.lora_S: nn.Parameter | None
        self.register_parameter("lora_S", None)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        a, b, square = self.lora_A, self.lora_B, self.lora_S
        if square is None:
            return _beside(self.base_layer, x, lambda w, bias: lora_linear(x, w, a, b, scale=self.scaling, bias=bias))
        return _beside(
            self.base_layer, x, lambda w, bias: usv_linear(x, w, b, square, a.mT, scale=self.scaling, bias=bias)
        )

    @property
    def outer(self) -> Tensor:
        """[out, rank]: B, or B S."""
        return self.lora_B if self.lora_S is None else self.lora_B @ self.lora_S

    def set_square(self, square: Tensor) -> None:
        """Freezes the factors and trains `square` [rank, rank] between them."""
        self.lora_A.requires_grad_(False)
        self.lora_B.requires_grad_(False)
        self.lora_S = nn.Parameter(square)

    @torch.no_grad()
    def fold_square(self) -> bool:
        """Makes B S the outer factor and lets both train; whether there was a square."""
        if self.lora_S is None:
            return False
        self.lora_B.copy_(self.outer)
        self.lora_S = None
        self.lora_A.requires_grad_(True)
        self.lora_B.requires_grad_(True)
        return True

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """`base` with W + scale B A as its weight, formed in float32 and rounded once."""
        return merged(self.base_layer, self.outer, self.lora_A, self.scaling)

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.lora_A.shape[0]}, scale={self.scaling:g}"


class AdaLoRALinear(nn.Module):
    """A linear layer and a part P diag(e) Q beside it, of which single values can be 0.

    `lora_A` is Q [rank, in] and `lora_B` P [out, rank], both normal with deviation 0.02; `lora_E` [rank, 1] starts at
    zero, so the layer starts as `base`, which is frozen.

    Args:
      base, rank, alpha: as in `LoRALinear`.
      seed: of the factors.

    Raises:
      TypeError: `base` is no torch.nn.Linear. ValueError: a value out of its range.

    Source: Zhang et al. 2023 (arXiv:2303.10512); the deviation as in the authors' code.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> layer = adapters.AdaLoRALinear(torch.nn.Linear(6, 4), rank=3)
      >>> layer.rank  # values that are not 0
      0
    """

    def __init__(self, base: nn.Linear, rank: int, *, alpha: float | None = None, seed: int = 0) -> None:
        super().__init__()
        self.base_layer, self.scaling, dtype = _checked_base(type(self).__name__, base, rank, alpha)
        generator, device = torch.Generator().manual_seed(seed), base.weight.device
        inner, outer = (
            torch.randn(*shape, generator=generator) for shape in ((rank, base.in_features), (base.out_features, rank))
        )
        self.lora_A = nn.Parameter((0.02 * inner).to(device, dtype))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, dtype=dtype, device=device))
        self.lora_B = nn.Parameter((0.02 * outer).to(device, dtype))

    @property
    def rank(self) -> int:
        """How many values are not 0."""
        return int(self.lora_E.count_nonzero())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        a, b = self.lora_A * self.lora_E, self.lora_B
        return _beside(self.base_layer, x, lambda w, bias: lora_linear(x, w, a, b, scale=self.scaling, bias=bias))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(b [out, r], a [r, in]) with b a = P diag(e) Q, without the values that are 0."""
        kept = self.lora_E.detach().flatten() != 0
        return self.lora_B.detach()[:, kept], (self.lora_A * self.lora_E).detach()[kept]

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """`base` with the part added to its weight, formed in float32 and rounded once."""
        return merged(self.base_layer, *self.factors(), self.scaling)

    def extra_repr(self) -> str:
        """Room and scale."""
        return f"room={len(self.lora_E)}, scale={self.scaling:g}"


class USVLinear(nn.Module):
    """A linear layer and a part U S Vᵀ beside it: base(x) + scale ((x V) Sᵀ) Uᵀ, with the gradients of `usv_linear`.

    U [out, k], S [k, k] and V [in, k] have room for the largest rank k; beyond the rank r, which may move, they are
    zero. The first r columns of U and V start random and orthonormal, S at zero, so the layer starts as `base`.

    Args:
      base: torch.nn.Linear, or a module with `in_features` and `out_features` that holds a quantized weight; frozen.
      rank: from 1 to min(in, out).
      max_rank: from `rank` to min(in, out); None: `rank`.
      scale: a number apart from 0; constant, whatever the rank.
      seed: of the columns.

    Raises:
      TypeError: `base` is no linear layer. ValueError: a value out of its range.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> layer = adapters.USVLinear(torch.nn.Linear(6, 4), rank=2)
      >>> layer(torch.ones(3, 6)).square().mean().backward()
      >>> layer.rank, bool(layer.u.grad.any())  # the K-gradient, from S = 0 on
      (2, True)
    """

    def __init__(
        self, base: nn.Module, rank: int, *, max_rank: int | None = None, scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        op = type(self).__name__
        sizes = getattr(base, "out_features", None), getattr(base, "in_features", None)
        if not isinstance(base, nn.Module) or None in sizes:
            raise TypeError(f"{op}: `base` must be a torch.nn.Linear, got {type(base).__name__}")
        m, n = cast(tuple[int, int], sizes)
        require(is_count(rank, 1) and rank <= min(m, n), op, "rank", f"be an int from 1 to {min(m, n)}", rank)
        room, rule = rank if max_rank is None else max_rank, f"be an int from {rank} to {min(m, n)}, or None"
        require(is_count(room, rank) and room <= min(m, n), op, "max_rank", rule, max_rank)
        require(is_number(scale) and scale != 0, op, "scale", "be a number apart from 0", scale)
        weight = cast(Tensor, base.weight)
        made = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        generator = torch.Generator().manual_seed(seed)
        self.base_layer = base.requires_grad_(False)
        self.scaling = float(scale)
        columns = [torch.randn(length, rank, dtype=torch.float64, generator=generator) for length in (m, n)]
        u, v = (nn.functional.pad(torch.linalg.qr(q).Q, (0, room - rank)).to(weight.device, made) for q in columns)
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.s = nn.Parameter(torch.zeros(room, room, dtype=made, device=weight.device))
        self.register_buffer("active", torch.tensor(rank))
        self.active: Tensor

    @property
    def rank(self) -> int:
        """r, now."""
        return int(self.active)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """u [out, r], s [r, r] and v [in, r] as they are now: views."""
        r = self.rank
        return self.u.detach()[:, :r], self.s.detach()[:r, :r], self.v.detach()[:, :r]

    @torch.no_grad()
    def take(self, u: Tensor, s: Tensor, v: Tensor) -> None:
        """Takes over parts of another rank, in place."""
        for param, value in ((self.u, u), (self.s, s), (self.v, v)):  # padded before, for it may be part of `param`
            rows, columns = (room - size for room, size in zip(param.shape, value.shape, strict=True))
            param.copy_(nn.functional.pad(value, (0, columns, 0, rows)))
        self.active.fill_(len(s))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        u, s, v = self.u, self.s, self.v
        return _beside(self.base_layer, x, lambda w, bias: usv_linear(x, w, u, s, v, scale=self.scaling, bias=bias))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(b [out, r], a [r, in]) with b a = U S Vᵀ."""
        u, s, v = self.parts()
        return u @ s, v.mT

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """`base` with W + scale U S Vᵀ as its weight, formed in float32 and rounded once."""
        return merged(self.base_layer, *self.factors(), self.scaling)

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.rank}, scale={self.scaling:g}"


def _check_linear(op: str, base: object) -> None:
    if not isinstance(base, nn.Linear):
        raise TypeError(f"{op}: `base` must be a torch.nn.Linear, got {type(base).__name__}")


def _checked_base(op: str, base: nn.Linear, rank: int, alpha: float | None) -> tuple[nn.Linear, float, torch.dtype]:
    """The frozen base, the scale alpha / rank, and the dtype of the factors."""
    _check_linear(op, base)
    most = min(base.in_features, base.out_features)
    require(is_count(rank, 1) and rank <= most, op, "rank", f"be an int from 1 to {most}", rank)
    rule = "be a number apart from 0, or None"
    require(alpha is None or (is_number(alpha) and alpha != 0), op, "alpha", rule, alpha)
    dtype = torch.float32 if is_quantized(base.weight) else base.weight.dtype
    return base.requires_grad_(False), 1.0 if alpha is None else alpha / rank, dtype


def _beside(base: nn.Module, x: Tensor, layer: Callable[[Tensor | None, Tensor | None], Tensor]) -> Tensor:
    """`layer` of the base's weight and bias; of none where the base is another kind of linear layer, which acts."""
    if type(base) is nn.Linear and not is_quantized(base.weight):
        return layer(base.weight, base.bias)
    return cast(Tensor, base(x)) + layer(None, None)


def check_mergeable(op: str, base: object, name: str = "base") -> None:
    """Raises TypeError if `base` is no linear layer of floating-point weights."""
    _check_linear(op, base)
    weight = cast(nn.Linear, base).weight
    if is_quantized(weight):
        raise TypeError(
            f"{op}: `{name}` must have a floating-point weight, got a quantized one ({type(weight).__name__}); "
            "keep the factors beside it"
        )


def merged(base: nn.Module, b: Tensor, a: Tensor, scale: float) -> nn.Linear:
    """`base`, whose weight is W + scale b a from now on: its own, so that a module that W was tied to keeps W."""
    check_mergeable("merge", base)
    linear = cast(nn.Linear, base)
    weight = with_product(linear.weight, b, a, scale).to(linear.weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    return linear
