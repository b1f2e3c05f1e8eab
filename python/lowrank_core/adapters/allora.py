"""ALLoRAAdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.adapters.pair_optimizer import Gradients, PairOptimizer
from lowrank_core.checks import is_number, require
from lowrank_core.optim.base import Params


class ALLoRAAdamW(PairOptimizer):
    """AdamW on gradients of A and B whose rows are multiplied by 1 / sqrt(|row of the factor| + 1 / eta²).

    So a row of zeros, as all of B at the start, has its gradient multiplied by eta, and a long row by little. The
    factors are those of the row as it is at each step. AdamW forgets a factor that stays: what acts is how it changes.

    ALLoRA has no alpha / r and no dropout. Both belong to the model, which is left as it is: make the adapters with
    alpha = r and without dropout to follow the paper.

    Args:
      model: with adapters that `find_pairs` finds.
      params: groups, or (name, parameter) pairs; None: all that is trained.
      lr: >= 0, number or tensor of one element.
      betas, eps: of AdamW.
      weight_decay: >= 0, decoupled.
      eta: > 0; a key of a group, read of that of each factor. No default is published; 10 is ours.
      moment_dtype: "auto", "float32", "bfloat16" or "int8".
      rounding, seed, nonfinite, maximize, torch_keys: as in `GaLoreAdamW`.

    Raises:
      TypeError: `model` is no module, an unknown key. ValueError: no trained adapters, or a value out of its range.

    Determinism: D2 (docs/numerics.md): norms are torch's.
    Source: Huang and Balestriero 2024 (arXiv:2410.09692), from its abstract; the coefficient as others have coded it.
      Whether the paper takes rows or columns could not be verified: here it is the rows of A [r, n] and of B [m, r].

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> optimizer = adapters.ALLoRAAdamW(model, lr=1e-3, betas=(0.0, 0.999), eta=10.0)
      >>> model(torch.ones(3, 6)).square().mean().backward()
      >>> optimizer.step()
      >>> torch.allclose(optimizer.state[model[0].lora_B]["exp_avg"], 10 * model[0].lora_B.grad)  # B was 0
      True
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
        eta: float = 10.0,
        moment_dtype: str = "auto",
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(model, params, locals())

    def check_group(self, group: dict[str, Any]) -> None:
        eta = group["eta"]
        require(is_number(eta) and eta > 0, type(self).__name__, "eta", "be a number > 0", eta)
        super().check_group(group)

    def turn(self, some: list[Gradients]) -> None:
        eta = self.by_param("eta")
        for pair, ga, gb, new_a, new_b in some:
            _scaled(new_a, ga, pair.a_of(pair.a.detach()), eta[pair.a])
            _scaled(new_b, gb, pair.b_of(pair.b.detach()), eta[pair.b])


def _scaled(new: Tensor, grad: Tensor, factor: Tensor, eta: float) -> None:
    work = torch.promote_types(factor.dtype, torch.float32)
    norms = torch.linalg.vector_norm(factor, dim=1, keepdim=True, dtype=work)
    new.copy_(grad.to(work) * (norms + eta**-2).rsqrt())
