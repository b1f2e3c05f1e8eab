"""Which derivatives the family's operators have: none so far."""

from __future__ import annotations

from lowrank_core.ops.torch_autograd import Rules

RULES: dict[str, Rules] = {}
