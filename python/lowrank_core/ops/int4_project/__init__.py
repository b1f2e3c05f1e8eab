"""Arrays and bases of subspaces as 4-bit codes."""

from lowrank_core.ops.int4_project.codes import dequantize_int4, quantize_int4
from lowrank_core.ops.int4_project.matrix import Int4Matrix
from lowrank_core.ops.int4_project.products import int4_project, int4_project_back

__all__ = [
    "Int4Matrix",
    "dequantize_int4",
    "int4_project",
    "int4_project_back",
    "quantize_int4",
]
