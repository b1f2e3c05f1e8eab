"""Small layers with adapters, and weights whose singular values are known and apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lowrank_core import adapters
from testing import cases, tolerance
from torch import Tensor, nn

M, N, RANK = 12, 16, 3
REVEALING = ("pissa", "olora", "lora_ga")  # those that move W0


def separated(m: int, n: int, seed: int = 0) -> Tensor:
    """[m, n] float64 with singular values 1, 1/2, 1/4 and so on."""
    k = min(m, n)
    left, right = (torch.linalg.qr(cases.gaussian(rows, k, seed=seed + i).double()).Q for i, rows in enumerate((m, n)))
    values: Tensor = 0.5 ** torch.arange(k, dtype=torch.float64)
    return (left * values) @ right.mT


def model(dtype: torch.dtype = torch.float64, *, rank: int = RANK, alpha: float = 6.0) -> nn.Sequential:
    """Two layers of one shape and one of the transposed shape between them."""
    layers = []
    for seed, (m, n) in enumerate([(M, N), (N, M), (M, N)]):
        base = nn.Linear(n, m)
        with torch.no_grad():
            base.weight.copy_(separated(m, n, seed=10 * seed))
            base.bias.copy_(cases.gaussian(1, m, seed=90 + seed)[0])
        layers.append(adapters.LoRALinear(base.to(dtype), rank=rank, alpha=alpha))
    return nn.Sequential(*layers)


def batches(count: int = 3, tokens: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [cases.gaussian(tokens, N, seed=300 + i).to(dtype) for i in range(count)]


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = net(batch).square().mean()
    return result


def data(method: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The arguments that `method` needs."""
    return {"batches": batches(dtype=dtype), "loss_fn": loss} if method in ("lora_ga", "lora_sb", "eva") else {}


def weights(net: nn.Module) -> list[Tensor]:
    return [layer.base_layer.weight.detach().clone() for layer in layers(net)]


def layers(net: nn.Module) -> Iterator[Any]:
    return (module for module in net.modules() if isinstance(module, adapters.LoRALinear))


def moved(after: Tensor, b: Tensor, a: Tensor, scale: float, before: Tensor) -> None:
    """W0' + scale b a = W0 up to one rounding of W0' to its dtype and the rounding of the sum it was formed by."""
    wide = tolerance.factor_dtype(before.dtype)
    now, old, b, a = (t.detach().double() for t in (after, before, b, a))
    formed = tolerance.gamma(a.shape[0] + 2, wide) * (old.abs() + abs(scale) * b.abs() @ a.abs())
    bound = tolerance.UNIT[before.dtype] * (now.abs() + formed) + formed
    assert ((now + scale * b @ a - old).abs() <= bound).all()


def triplets(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The exact ones, with the signs of `rsvd`."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    largest = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return (u * largest)[:, :rank], s[:rank], (vh * largest.mT)[:rank]


def turning(matrix: Tensor, rank: int) -> float:
    """How far singular vectors may be from the exact ones: the error of a factorization over the least gap."""
    s = torch.linalg.svdvals(matrix.double())[: rank + 1]
    return 4 * tolerance.coefficients(matrix, min(matrix.shape)) / float((s[:-1] - s[1:]).min())
