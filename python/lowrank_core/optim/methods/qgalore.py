"""Q-GaLore."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, svd_projector, transport
from lowrank_core.optim.parts.projectors.packed import PackedBasis
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.schedules.lazy import LazyGap


class QGaLoreAdamW(LowRankOptimizer):
    """GaLore with its basis in 4-bit codes, 8-bit moments, and refreshes that become rarer where the subspace stays.

    R = P^T G, N and the step are those of `GaLoreAdamW`, with P as its codes stand for it. Of the basis [s, r] each
    column is cut into groups of `group_size` rows; an entry is scale * code + offset of its group, codes 0 to 15, two a
    byte. P is not quite orthonormal then: P^T P is off by about a tenth. State: 0.5 + 4 / group_size bytes for each of
    s r elements, 1.02 bytes for each of 2 l r, and queue_size + 2 numbers; s, l = min, max(m, n).

    A refresh measures the mean cosine of the principal angles between the new and the old subspace. Once the mean of
    the last `queue_size` of these is at least `cos_threshold`, the gap of that weight grows by `gamma`, up to 10 000
    steps, and the counting starts anew. Two random subspaces have a mean square cosine of r / s: where r is a quarter
    of s, raise `cos_threshold` above 0.5 if chance alone is not to count.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for |N| = 1 and scale = 1.
      update_proj_gap: >= 1, steps from one search for the basis to the next, before it grows.
      cos_threshold: >= 0; above 1 the gap never grows.
      queue_size: >= 1, cosines that are looked at together.
      gamma: >= 1, what the gap is multiplied by.
      group_size: a multiple of 32 from 32 to 256. A basis of fewer rows has smaller groups.
      moment_dtype: as there; "int8" is the default, on the CPU only in this version: elsewhere say "auto".

    Raises, warns, determinism: as there.

    Source: Zhang et al. 2024 (arXiv:2407.08296), in torch's Adam form. Deviations: codes are packed and have an offset
      of their own instead of a zero point that destroys groups of one sign; cosines are those of all principal angles,
      without signs, where the code compares the first vectors alone; the queue is emptied when the gap grows; searches
      are randomized by default; and those of `GaLoreAdamW`. Weights in 8 bits are `Int8Linear`'s.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import QGaLoreAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = QGaLoreAdamW(layer.parameters(), lr=0.01, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["proj.basis.codes"].shape  # two codes a byte: of [32, 8]
      torch.Size([16, 8])
    """

    deciding = ("queue_size", "group_size")

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: str = "std",
        projector: str = "rsvd",
        oversample: int = 10,
        niter: int = 2,
        moments: str = "keep",
        cos_threshold: float = 0.4,
        queue_size: int = 5,
        gamma: float = 2,
        group_size: int = 128,
        moment_dtype: str = "int8",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        force_projection: bool = False,
        maximize: bool = False,
        stagger: bool | str = "auto",
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, lazy = cls.__name__, ("stagger", "cos_threshold", "queue_size", "gamma")
        return Parts.of(
            op,
            group,
            weight,
            projector=PackedBasis(svd_projector(op, group, weight), group["group_size"]),
            residual=Drop(group["scale"]),
            transport=transport(op, group),
            schedule=LazyGap(group["update_proj_gap"], **{key: group[key] for key in lazy}),
        )
