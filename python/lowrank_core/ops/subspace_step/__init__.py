"""The fused step of weights whose moments live in a subspace."""

from lowrank_core.ops.subspace_step.step import subspace_step_

__all__ = [
    "subspace_step_",
]
