"""Leading singular triplets of many matrices: those of one shape in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.adapters.progress import progress
from lowrank_core.ops.rsvd import RSVD, rsvd

STACKED = 2**28  # bytes of matrices that are copied side by side for one call


@dataclass(frozen=True)
class Search:
    """How singular vectors are looked for, as the arguments of `rsvd`; `op` is who the user called."""

    op: str
    oversample: int
    niter: int
    seed: int

    def leading(
        self,
        argument: str,
        what: str,
        named: Sequence[tuple[str, Tensor]],
        ranks: Sequence[int],
        read: Callable[[int], Tensor] | None = None,
    ) -> list[RSVD]:
        """`rsvd` of each matrix [m, n]; kernels run on the host, to which matrices of other devices are copied.

        `read`: what has the values of a matrix by its position, where those of `named` are not there all at once.

        Raises:
          ValueError: a matrix is not finite; the sentence has the argument, `what` of it, and the matrix's name.
        """
        found: dict[int, RSVD] = {}
        for part in progress(alike([matrix for _, matrix in named], ranks), "singular vectors"):
            matrices = [(named[i][1] if read is None else read(i)).detach().cpu() for i in part]
            stacked = matrices[0].unsqueeze(0) if len(part) == 1 else torch.stack(matrices)
            try:
                u, s, vh = self.one(stacked, ranks[part[0]])
            except ValueError:
                self.require_finite(argument, what, [(named[i][0], x) for i, x in zip(part, matrices, strict=True)])
                raise
            found |= {i: RSVD(u[j], s[j], vh[j]) for j, i in enumerate(part)}
        return [found[i] for i in range(len(named))]

    def one(self, matrices: Tensor, rank: int, basis: Tensor | None = None) -> RSVD:
        """Of [..., m, n] on the host."""
        niter = self.niter if basis is None else max(1, self.niter)
        return rsvd(matrices, rank, oversample=self.oversample, niter=niter, basis=basis, seed=self.seed)

    def require_finite(self, argument: str, what: str, named: Iterable[tuple[str, Tensor]]) -> None:
        """Raises ValueError with the first name whose tensor is not finite."""
        for name, tensor in named:
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{self.op}: `{argument}` must have finite {what}, got NaN or infinity in {name}")


def alike(matrices: Sequence[Tensor], ranks: Sequence[int]) -> list[list[int]]:
    """Positions that one call takes: of one shape, dtype and rank, up to STACKED bytes."""
    members: dict[object, list[int]] = defaultdict(list)
    for i, (matrix, rank) in enumerate(zip(matrices, ranks, strict=True)):
        members[(matrix.shape, matrix.dtype, rank)].append(i)
    parts = []
    for same in members.values():
        count = max(1, STACKED // max(1, matrices[same[0]].nbytes))
        parts += [same[i : i + count] for i in range(0, len(same), count)]
    return parts
