"""What a low-rank optimizer tells about itself while it runs."""

from __future__ import annotations

from typing import NamedTuple


class Projection(NamedTuple):
    """The subspace of one projected weight, as `optimizer.projections()` reports it."""

    name: str
    shape: tuple[int, ...]  # of the weight
    side: str  # "left", "right", "both" or "whole"
    rank: int
    captured: float | None  # |P^T G|_F^2 / |G|_F^2 at the last refresh, in [0, 1]; None before the first
    refreshes: int
    last_refresh_step: int | None  # finished steps of that weight when it came; None before the first
