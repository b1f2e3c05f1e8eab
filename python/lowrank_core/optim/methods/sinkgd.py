"""SinkGD."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lowrank_core.memory.geometry import Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules.lines import Sinkhorn


class SinkGD(LowRankOptimizer):
    """The gradient with rows and columns normalized in turns: a control without any state of matrices.

    W <- (1 - lr weight_decay) W - lr scale N(G); N divides each row and then each column by its root mean square,
    `iterations` times, so that in the end all lines are about as long (Sinkhorn's iteration on the squares).

    Which parameters, and all keys that are not named here: as `SCALE`, without a last layer.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element; of matrices it is lr * scale.
      iterations: >= 1.
      scale: factor on the update of matrices.

    Raises, warns, determinism: as there.

    Source: Scetbon et al. 2025 (arXiv:2502.06742), algorithm 3; `scale` as in its experiments. Deviation: a line of
      zeros stays.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import SinkGD
      >>> layer = torch.nn.Linear(64, 32, bias=False)
      >>> optimizer = SinkGD(layer.parameters(), lr=0.02)
      >>> layer(torch.randn(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state_bytes()  # the count of steps
      4
    """

    full_rank: ClassVar[str] = "whole"

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = "full",
        iterations: int = 5,
        scale: float = 0.05,
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        return taken_whole(cls.__name__, group, weight, rule=Sinkhorn(group["iterations"]), scale=group["scale"])
