"""Selection of atoms of a fixed orthogonal basis, such as that of the cosine transform."""

from lowrank_core.ops.dct_select.back import dct_project_back
from lowrank_core.ops.dct_select.feedback import dct_select_feedback_
from lowrank_core.ops.dct_select.moments import rotate_moments
from lowrank_core.ops.dct_select.selection import Selection, dct_select
from lowrank_core.ops.dct_select.transform import dct, idct

__all__ = [
    "Selection",
    "dct",
    "dct_project_back",
    "dct_select",
    "dct_select_feedback_",
    "idct",
    "rotate_moments",
]
