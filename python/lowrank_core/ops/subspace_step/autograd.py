"""The step writes to its arguments and has no derivative."""

from __future__ import annotations

from lowrank_core.ops.torch_autograd import Rules

RULES: dict[str, Rules] = {}
