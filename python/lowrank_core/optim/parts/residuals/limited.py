"""Residuals whose growth is limited: those of Fira and APOLLO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_core.checks import is_number, require
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.storage import Layout, limit_fields
from lowrank_core.ops.subspace_step.check import NO_CAP
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.residuals.drop import Scaled, kernel_of
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.slots import State

NORM_EPS = 1e-8  # Fira's and APOLLO's, beside the norm of a channel


@dataclass(frozen=True)
class _Limited(Scaled):
    """A residual S whose growth is limited: |S| <= limiter |S of the last step|, None for no limit.

    The norms are those before the bias correction, as in the packages of both methods, where the limiter is a hidden
    warm-up. A previous norm below `resolution` times what Adam gives a low-rank gradient holds nothing down.

    Source: Chen et al. 2024 (Fira, arXiv:2410.01623), section 3.3; the resolution is ours.
    """

    limiter: float | None = 1.01
    resolution: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        met = self.limiter is None or is_number(self.limiter, 1.0)
        require(met, type(self).__name__, "limiter", "be a number >= 1, or None", self.limiter)

    def layout(self, where: Geometry) -> Layout:
        return limit_fields()

    def limits(self, states: list[State]) -> list[Tensor]:
        return [] if self.limiter is None else [state["residual.limit"] for state in states]

    def floor(self, low: Tensor) -> float:
        return self.resolution * math.sqrt(low.numel())  # the entries of N are of size 1

    def limited_(self, rest: Tensor, seen: Seen, state: State) -> Tensor:
        """`rest` held to the limit; its norm is what the next one is held to. Waits for no device."""
        if self.limiter is None:
            return rest
        unbias = seen.direction.unbias
        previous = with_bias_correction(state["residual.limit"], unbias)
        norm, allowed = torch.linalg.vector_norm(rest, dtype=torch.float64), self.limiter * previous.double()
        binds = (previous > 1e-12 * rest.numel() ** 0.5) & (norm > allowed)
        factor = torch.where(binds, allowed / norm, 1.0)
        hold_limit(state["residual.limit"], (norm * factor).float(), unbias, self.floor(seen.low))
        return rest.mul_(factor.to(rest.dtype))


def with_bias_correction(limit: Tensor, unbias: float | Tensor) -> Tensor:
    """The norm that a state holds, as it would be in this step."""
    return limit * unbias


def hold_limit(limit: Tensor, norm: Tensor, unbias: float | Tensor, floor: float | Tensor) -> None:
    """Puts the norm of this step into the state, or 0, which holds nothing down, where it is not above `floor`."""
    limit.copy_(torch.where(norm > floor, norm / unbias, 0.0))


class Limits:
    """The norms that the states of a list of weights hold, [1] each on the host.

    A kernel compares norms that are corrected for the bias, and puts those of its step in their place.
    """

    def __init__(self, held: list[Tensor], unbias: list[float | Tensor]) -> None:
        self._held = held
        self._unbias = torch.tensor(unbias, device="cpu")
        self._together = with_bias_correction(torch.cat(held), self._unbias)

    @property
    def corrected(self) -> list[Tensor]:
        """What the kernel reads and changes."""
        return list(torch.split(self._together, 1))

    def hold(self, floors: list[float]) -> None:
        """Puts the norms of this step into the states."""
        norms = torch.empty_like(self._together)
        hold_limit(norms, self._together, self._unbias, torch.tensor(floors, device="cpu"))
        torch._foreach_copy_(self._held, list(torch.split(norms, 1)))


def resolution(weight: torch.dtype) -> float:
    """How long G - P R may be beside R where it is nothing but rounding.

    The kernel takes its squared norm from squared norms, which leaves the root of a few units. Half-precision gradients
    are rounded themselves, and so is a bfloat16 basis.
    """
    work = work_dtype(weight)
    stored = weight if weight.is_floating_point else work  # frozen weights may be of any dtype
    return max(4 * math.sqrt(torch.finfo(work).eps / 2), torch.finfo(stored).eps)


@dataclass(frozen=True)
class ScaledRest(_Limited):
    """scale P N + S, S = c phi_j (G - kappa P R)_j with phi_j = |N_j| / |R_j| (Fira); j is a channel.

    kappa is 1 as in the paper, or `scale` as in the authors' code.

    Source: Chen et al. 2024 (arXiv:2410.01623), equations 5 and 7.
    """

    kappa: float = 1.0

    def complete(self, seen: Seen, state: State) -> Direction:
        inside = seen.direction.dense()
        rest = (seen.grad - seen.subspace.up(seen.low).mul_(self.kappa)).mul_(channel_scales(inside, seen))
        rest = self.limited_(rest, seen, state)
        return Direction(seen.subspace.up(inside.mul_(self.scale)).add_(rest))

    def kernel(self) -> dict[str, Any] | None:
        return kernel_of("scaled", self.scale, residual_scale=self.kappa, growth=self.limiter or 1.0)


@dataclass(frozen=True)
class ScaledGradient(_Limited):
    """S = c scale phi_j G_j in place of what is lifted (APOLLO): phi of each channel, or one of the whole tensor.

    `cap` holds phi_j below that multiple of the median channel's, among those whose phi_j is not zero.

    Source: Zhu et al. 2024 (arXiv:2412.05270), algorithm 1.
    """

    whole: bool = False
    cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        met = self.cap is None or is_number(self.cap, 1.0)
        require(met, type(self).__name__, "scale_cap", "be a number >= 1, or None", self.cap)

    def floor(self, low: Tensor) -> float:
        return self.scale * super().floor(low)

    def complete(self, seen: Seen, state: State) -> Direction:
        inside = seen.direction.dense()
        if self.whole:
            norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (inside, seen.low)]
            phi = (norms[0] / (norms[1] + NORM_EPS)).to(inside.dtype)
        else:
            phi = channel_scales(inside, seen)
            if self.cap is not None:
                # Without the zeros: most rows of an embedding see no token, and would cap the others to nothing.
                live = torch.where(phi > 0, phi, torch.nan)
                phi = phi.clamp(max=self.cap * live.nanmedian().nan_to_num())
        return Direction(self.limited_(seen.grad * phi.mul_(self.scale), seen, state))

    def kernel(self) -> dict[str, Any] | None:
        growth = self.limiter or 1.0
        if self.whole:  # where there is one phi, a cap says nothing
            return kernel_of("tensor", self.scale, growth=growth)
        return kernel_of("channel", self.scale, cap=NO_CAP if self.cap is None else float(self.cap), growth=growth)


def channel_scales(inside: Tensor, seen: Seen) -> Tensor:
    """phi_j = |N_j| / |R_j|: [1, n] where the basis is on the left, [m, 1] where it is on the right."""
    axis = 0 if seen.where.side == Side.LEFT else 1
    norms = [torch.linalg.vector_norm(x, dim=axis, keepdim=True, dtype=torch.float64) for x in (inside, seen.low)]
    scales: Tensor = norms[0] / (norms[1] + NORM_EPS)
    return scales.to(inside.dtype)
