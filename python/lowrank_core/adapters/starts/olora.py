"""OLoRA: the first columns of the orthonormal factor of the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_core.adapters.progress import progress
from lowrank_core.adapters.starts.start import Factors, Settings, Target
from lowrank_core.ops.rsvd import orthonormalize


def olora(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """W0 = Q R with a positive diagonal of R: B = the first r columns of Q, A = the first r rows of R.

    Those are Q of the first r columns of W0, and Qᵀ W0: the other columns need no factorization. The scale is not
    taken into the factors, as in the authors' code and in PEFT.

    Source: Büyükakyüz 2024 (arXiv:2406.01775), algorithm 1; the sign is ours.
    """
    settings.search.require_finite("model", "weights", ((target.name, target.weight.matrix) for target in targets))
    return [
        Factors(*_leading_qr(target.weight.matrix, target.pair.rank)) for target in progress(targets, "orthonormal")
    ]


def _leading_qr(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Q [m, r] and R [r, n]."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).cpu()
    q = orthonormalize(wide[:, :rank])
    r = q.mT @ wide
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r.dtype)
    return q * signs, signs.unsqueeze(-1) * r
