"""The public functions of every kernel family."""

from lowrank_core.ops.dct_select import Selection, dct_select
from lowrank_core.ops.dct_select_back import dct_project_back
from lowrank_core.ops.dct_select_feedback import dct_select_feedback_
from lowrank_core.ops.dct_select_moments import rotate_moments
from lowrank_core.ops.dct_select_transform import dct, idct
from lowrank_core.ops.rsvd import RSVD, range_finder, rsvd, svd_lowrank
from lowrank_core.ops.rsvd_factor import QB, factored_svd, orthonormalize, qb
from lowrank_core.ops.rsvd_list import range_finder_list
from lowrank_core.ops.rsvd_project import project, project_back

__all__ = [
    "QB",
    "RSVD",
    "Selection",
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
    "range_finder_list",
    "rotate_moments",
    "rsvd",
    "svd_lowrank",
]
