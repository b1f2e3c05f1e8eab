"""ScaledAdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.adapters.pair_optimizer import Gradients, PairOptimizer
from lowrank_core.checks import is_number, require
from lowrank_core.ops.chain_lr.pairs import scaled_gradients_list
from lowrank_core.optim.base import Params
from lowrank_core.optim.devices import has_kernels


class ScaledAdamW(PairOptimizer):
    """AdamW on gradients of A and B that are scaled by the Gram matrix of the other factor.

    gA <- (BᵀB + reg I)⁻¹ gA, gB <- gB (AAᵀ + reg I)⁻¹, then a step of AdamW with all that is trained.

    Args:
      model: with adapters that `find_pairs` finds.
      params: groups, or (name, parameter) pairs, such as `loraplus_param_groups` returns; None: all that is trained.
      lr: >= 0, number or tensor of one element.
      betas, eps: of AdamW.
      weight_decay: >= 0, decoupled.
      reg: > 0, the damping; a key of a group, read of that of A.
      moment_dtype: "auto", "float32", "bfloat16" or "int8".
      rounding, seed, nonfinite, maximize, torch_keys: as in `GaLoreAdamW`.

    Raises:
      TypeError: `model` is no module, an unknown key. ValueError: no trained adapters, or a value out of its range.

    Determinism: D1 (same bits for any number of threads; docs/numerics.md).
    Source: Zhang and Pilanci 2024 (arXiv:2402.02347), eq. 3; `reg` as in PEFT's `create_riemannian_optimizer`. `.grad`
      stays as it is here, and factors of embeddings are scaled, too.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> optimizer = adapters.ScaledAdamW(model, lr=1e-3)
      >>> model(torch.ones(3, 6)).square().mean().backward()
      >>> optimizer.step()
      >>> [bool(factor.grad.any()) for factor in (model[0].lora_A, model[0].lora_B)]  # B = 0 at the start
      [False, True]
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params | None = None,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        reg: float = 1e-2,
        moment_dtype: str = "auto",
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(model, params, locals())

    def check_group(self, group: dict[str, Any]) -> None:
        require(
            is_number(group["reg"]) and group["reg"] > 0, type(self).__name__, "reg", "be a number > 0", group["reg"]
        )
        super().check_group(group)

    def turn(self, some: list[Gradients]) -> None:
        reg = self.by_param("reg")
        for scaled, has_kernel in ((scaled_gradients_list, True), (_composed, False)):
            here = [one for one in some if has_kernels(one.ga.device) is has_kernel]
            if here:
                pairs, grad_a, grad_b, new_a, new_b = map(list, zip(*here, strict=True))
                a, b = [pair.a_of(pair.a) for pair in pairs], [pair.b_of(pair.b) for pair in pairs]
                scaled(new_a, new_b, grad_a, grad_b, a, b, [float(reg[pair.a]) for pair in pairs])


def _composed(*lists: Any) -> None:
    """`scaled_gradients_list` where there is no kernel for it."""
    for new_a, new_b, grad_a, grad_b, a, b, damping in zip(*lists, strict=True):
        grams = b.double().mT @ b.double(), a.double() @ a.double().mT
        left, right = (gram + damping * torch.eye(len(gram)).to(gram) for gram in grams)
        new_a.copy_(torch.linalg.solve(left, grad_a.double()))
        new_b.copy_(torch.linalg.solve(right, grad_b.double(), left=False))
