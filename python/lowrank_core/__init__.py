"""Kernels and optimizers for low-rank training: NumPy, PyTorch and CuPy arrays in, the same kind out.

Importing this package imports neither torch nor cupy; the optimizers are in `lowrank_core.optim` (torch).
"""

from lowrank_core.ops import (
    QB,
    RSVD,
    Int4Matrix,
    Selection,
    dct,
    dct_project_back,
    dct_select,
    dct_select_feedback_,
    dequantize_int4,
    factored_svd,
    idct,
    int4_project,
    int4_project_back,
    orthonormalize,
    project,
    project_back,
    qb,
    quantize_int4,
    range_finder,
    rotate_moments,
    rsvd,
    subspace_step_,
    svd_lowrank,
)

__version__ = "0.1.0"

__all__ = [
    "QB",
    "RSVD",
    "Int4Matrix",
    "Selection",
    "__version__",
    "dct",
    "dct_project_back",
    "dct_select",
    "dct_select_feedback_",
    "dequantize_int4",
    "factored_svd",
    "idct",
    "int4_project",
    "int4_project_back",
    "orthonormalize",
    "project",
    "project_back",
    "qb",
    "quantize_int4",
    "range_finder",
    "rotate_moments",
    "rsvd",
    "subspace_step_",
    "svd_lowrank",
]
