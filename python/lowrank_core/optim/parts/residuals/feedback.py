"""Residuals that feed back what a subspace did not hold: error feedback, and momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require, require_choice
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import Layout, Role, feedback_fields, stored
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.parts import atoms
from lowrank_core.optim.parts.codecs import Codec, Float32
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.rules import Direction, Moments
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.indices import Indices
from lowrank_core.optim.parts.subspaces.selection import All
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Draw, State

KEY = "residual.feedback"
_OWN_WORDS = 1  # keeps the draws of a fed-back matrix apart from those of the moments
# Factors of an update [rows, cols] whose singular values are near 1.
FACTORS = (None, "original", "match_rms_adamw")
NO_FACTOR = "none"


@dataclass(frozen=True)
class Feedback:
    """With the coordinates S = T(G) + E of the whole basis: a subspace is chosen from S, and E becomes S, `keep` times
    where it was chosen.

    keep = 0 is error feedback: E is all that was not stepped yet. keep = momentum is that of Dion2 and Trion; where all
    of the matrix is chosen, Muon's, whose step `nesterov` takes from T(G) + keep S instead of S. In coordinates this
    costs no product; it equals the same in the weight's space, because the basis is orthogonal.

    Source: Ahn et al. 2025 (Dion2, arXiv:2512.16928) and Modoranu et al. 2025 (arXiv:2505.17967), whose feedback in the
      weight's space this is after a change of basis.
    """

    keep: float = 0.0
    basis: str = "identity"  # or `AUTO_BASIS`: what the projector has put into the state
    adjust_lr_fn: str | None = NO_FACTOR  # or one of `FACTORS`
    nesterov: bool = False
    codec: Codec = field(default_factory=Float32)  # how E is stored
    weight: str = "float32"  # the weight's dtype, which the codec looks at

    needs_whole: ClassVar[bool] = True
    takes_sketches: ClassVar[bool] = False
    feeds_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        met = is_number(self.keep, 0.0) and self.keep < 1
        require(met, name, "momentum", "be a number in [0, 1)", self.keep)
        require_choice(name, "adjust_lr_fn", self.adjust_lr_fn, (*FACTORS, NO_FACTOR))
        require(isinstance(self.nesterov, bool), name, "nesterov", "be True or False", self.nesterov)

    def layout(self, where: Geometry) -> Layout:
        return stored(feedback_fields(where), self.codec, self.weight)

    def enter(self, grad: Tensor, state: State) -> Tensor:
        # With `AUTO_BASIS` and before there is a subspace, E is zero and the coordinates are the gradient itself.
        spectrum = self._coordinates(grad, state)
        whole = spectrum + self.held(state, spectrum)
        return self._stepped(whole, spectrum) if self.nesterov else whole

    def leave(self, old: Subspace, moments: Callable[[], Moments]) -> Tensor | None:
        return None

    def complete(self, seen: Seen, state: State) -> Direction:
        whole = seen.grad
        if self.nesterov and seen.whole is not None:  # the signal is another one then
            spectrum = self._coordinates(seen.whole, state)
            whole = spectrum + self.held(state, spectrum)
        if isinstance(seen.subspace, Indices):
            seen.subspace.damp_(whole, self.keep)
        elif isinstance(seen.subspace, All):
            whole.mul_(self.keep)
        else:
            raise TypeError(f"Feedback: `subspace` must be one of atoms, got {type(seen.subspace).__name__}")
        self._store(whole, state, seen.draw)
        return self.lifted(seen.direction, seen.subspace, seen.where)

    def lifted(self, direction: Direction, subspace: Subspace, where: Geometry) -> Direction:
        """The direction of the weight."""
        factor = self.factor(where)
        plain = factor == 1 and direction.denominator is None
        return Direction(subspace.up(direction.numerator if plain else direction.dense(factor)))

    def factor(self, where: Geometry) -> float:
        """Of an update whose singular values are near 1.

        Source: torch.optim.Muon, which has those of Jordan et al. 2024 and Liu et al. 2025 (arXiv:2502.16982).
        """
        if self.adjust_lr_fn == NO_FACTOR:
            return 1.0
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * sqrt(max(where.rows, where.cols))
        return sqrt(max(1.0, where.rows / where.cols))

    def take_whole(self, grad: Tensor, state: State, draw: Draw) -> Tensor:
        """`enter`, and E moved on, where all of `grad` is chosen."""
        feedback = self.held(state, grad).add_(grad)
        signal = self._stepped(feedback, grad) if self.nesterov else feedback.clone()
        self._store(feedback.mul_(self.keep), state, draw)
        return signal

    def take_chosen(
        self, grads: list[Tensor], places: list[Geometry], norm_ord: int, states: list[State], draws: list[Draw]
    ) -> list[atoms.Chosen]:
        """`enter`, the choice of as many atoms as the ranks of `places`, and E moved on, in one pass over each of many
        matrices. On the CPU alone."""
        feedbacks = [self.held(state, grad) for state, grad in zip(states, grads, strict=True)]
        ranks, sides = [where.rank for where in places], [_side(state) for state in states]
        bases = [atoms.basis_in(state, self.basis) for state in states]
        chosen = atoms.choose_fed_back_(feedbacks, grads, ranks, sides, bases, keep=self.keep, norm_ord=norm_ord)
        for feedback, state, draw in zip(feedbacks, states, draws, strict=True):
            self._store(feedback, state, draw)
        return chosen

    def held(self, state: State, like: Tensor) -> Tensor:
        """E in the working dtype of `like`; the state itself where it is stored so."""
        return self.codec.decode(state, KEY, work_dtype(like.dtype), Role.RESIDUAL)

    def kernel(self) -> dict[str, Any]:
        return {}

    def limits(self, states: list[State]) -> list[Tensor]:
        return []

    def floor(self, low: Tensor) -> float:
        return 0.0

    def _coordinates(self, grad: Tensor, state: State) -> Tensor:
        basis = atoms.basis_in(state, self.basis)
        return atoms.coordinates(grad.to(work_dtype(grad.dtype)), basis, _side(state))

    def _stepped(self, whole: Tensor, spectrum: Tensor) -> Tensor:
        return torch.add(spectrum, whole, alpha=self.keep)

    def _store(self, feedback: Tensor, state: State, draw: Draw) -> None:
        own = draw._replace(seed=mix_seed(draw.seed, _OWN_WORDS))
        self.codec.encode(state, KEY, feedback, Role.RESIDUAL, own)


def _side(state: State) -> str:
    return "left" if state["proj.side"] == int(Side.LEFT) else "right"
