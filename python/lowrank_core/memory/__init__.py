"""Bytes of optimizer state from shapes alone, and how a weight is projected. Needs NumPy, not torch."""

from lowrank_core.memory.estimate import estimate_state_bytes
from lowrank_core.memory.formula import formula_state_bytes

__all__ = ["estimate_state_bytes", "formula_state_bytes"]
