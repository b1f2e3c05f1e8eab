"""Randomized singular value decompositions, and what is done with the bases that they find."""

from lowrank_core.ops.rsvd.augment import AugmentedBasis, augment_truncate
from lowrank_core.ops.rsvd.factor import QB, factored_svd, orthonormalize, qb
from lowrank_core.ops.rsvd.fixed_rank import RSVD, range_finder, rsvd, svd_lowrank
from lowrank_core.ops.rsvd.lists import qb_list, range_finder_list
from lowrank_core.ops.rsvd.projection import project, project_back

__all__ = [
    "QB",
    "RSVD",
    "AugmentedBasis",
    "augment_truncate",
    "factored_svd",
    "orthonormalize",
    "project",
    "project_back",
    "qb",
    "qb_list",
    "range_finder",
    "range_finder_list",
    "rsvd",
    "svd_lowrank",
]
