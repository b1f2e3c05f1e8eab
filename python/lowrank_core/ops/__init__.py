"""The public functions of every kernel family."""

from lowrank_core.ops.rsvd import RSVD, range_finder, rsvd, svd_lowrank
from lowrank_core.ops.rsvd_factor import QB, factored_svd, orthonormalize, qb
from lowrank_core.ops.rsvd_list import range_finder_list
from lowrank_core.ops.rsvd_project import project, project_back
from lowrank_core.ops.subspace_step import subspace_step_

__all__ = [
    "QB",
    "RSVD",
    "factored_svd",
    "orthonormalize",
    "project",
    "project_back",
    "qb",
    "range_finder",
    "range_finder_list",
    "rsvd",
    "subspace_step_",
    "svd_lowrank",
]
