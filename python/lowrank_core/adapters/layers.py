"""Layers with a low-rank part beside a linear layer of the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowrank_core.adapters.products import with_product
from lowrank_core.checks import is_count, is_number, require
from lowrank_core.ops.chain_lr import lora_linear, usv_linear


class LoRALinear(nn.Module):
    """A linear layer and a low-rank part beside it: x Wᵀ + bias + scale (x Aᵀ) Bᵀ.

    W and bias are those of `base`, frozen. `lora_A` [rank, in] starts as torch.nn.Linear's weight does, `lora_B`
    [out, rank] at zero, so the layer starts as `base`. They have the base's dtype where it trains, else float32.
    `init_lora_` may put `lora_S` [rank, rank] between them: then B S takes the place of B, and S alone trains.

    Args:
      base: torch.nn.Linear.
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
        _check_linear("LoRALinear", base)
        most = min(base.in_features, base.out_features)
        require(is_count(rank, 1) and rank <= most, "LoRALinear", "rank", f"be an int from 1 to {most}", rank)
        rule = "be a number apart from 0, or None"
        require(alpha is None or (is_number(alpha) and alpha != 0), "LoRALinear", "alpha", rule, alpha)
        self.base_layer = base.requires_grad_(False)
        self.scaling = 1.0 if alpha is None else alpha / rank
        weight = base.weight
        made = weight if weight.is_floating_point() else weight.new_empty((), dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=made.dtype, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=made.dtype, device=weight.device))
        self.lora_S: nn.Parameter | None
        self.register_parameter("lora_S", None)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        w, bias, a, b = self.base_layer.weight, self.base_layer.bias, self.lora_A, self.lora_B
        if self.lora_S is None:
            return lora_linear(x, w, a, b, scale=self.scaling, bias=bias)
        return usv_linear(x, w, b, self.lora_S, a.mT, scale=self.scaling, bias=bias)

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
        base = self.base_layer
        base.weight.copy_(with_product(base.weight, self.outer, self.lora_A, self.scaling))
        return base

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.lora_A.shape[0]}, scale={self.scaling:g}"


def _check_linear(op: str, base: object) -> None:
    if not isinstance(base, nn.Linear):
        raise TypeError(f"{op}: `base` must be a torch.nn.Linear, got {type(base).__name__}")
