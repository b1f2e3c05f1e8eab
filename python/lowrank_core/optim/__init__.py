"""Optimizers that keep their state in a low-rank subspace of each weight's gradient (needs torch)."""

from .estimate import estimate_state_bytes, formula_state_bytes
from .galore import GaLoreAdamW
from .groups import param_groups
from .loop import LowRankOptimizer

__all__ = ["GaLoreAdamW", "LowRankOptimizer", "estimate_state_bytes", "formula_state_bytes", "param_groups"]
