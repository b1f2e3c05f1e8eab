"""Kernels and optimizers for low-rank training: NumPy, PyTorch and CuPy arrays in, the same kind out.

Importing this package imports neither torch nor cupy; the optimizers are in `lowrank_core.optim` (torch).
"""

from lowrank_core.ops import (
    QB,
    RSVD,
    factored_svd,
    orthonormalize,
    project,
    project_back,
    qb,
    range_finder,
    rsvd,
    subspace_step_,
    svd_lowrank,
)

__version__ = "0.1.0"

__all__ = [
    "QB",
    "RSVD",
    "__version__",
    "factored_svd",
    "orthonormalize",
    "project",
    "project_back",
    "qb",
    "range_finder",
    "rsvd",
    "subspace_step_",
    "svd_lowrank",
]
