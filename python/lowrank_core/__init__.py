"""Kernels and optimizers for low-rank training: NumPy, PyTorch and CuPy arrays in, the same kind out.

Importing this package imports neither torch nor cupy; the optimizers are in `lowrank_core.optim` (torch).
"""

from lowrank_core.ops import (
    QB,
    RSVD,
    Selection,
    dct,
    dct_project_back,
    dct_select,
    dct_select_feedback_,
    factored_svd,
    idct,
    orthonormalize,
    project,
    project_back,
    qb,
    range_finder,
    rotate_moments,
    rsvd,
    svd_lowrank,
)

__version__ = "0.1.0"

__all__ = [
    "QB",
    "RSVD",
    "Selection",
    "__version__",
    "dct",
    "dct_project_back",
    "dct_select",
    "dct_select_feedback_",
    "factored_svd",
    "idct",
    "orthonormalize",
    "project",
    "project_back",
    "qb",
    "range_finder",
    "rotate_moments",
    "rsvd",
    "svd_lowrank",
]
