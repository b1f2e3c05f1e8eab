"""The public functions of every kernel family."""

from lowrank_core.ops.chain_lr import chain_matmul
from lowrank_core.ops.chain_lr_attention import AttentionLoRAGrad, attention_lora_grad
from lowrank_core.ops.chain_lr_features import positive_features
from lowrank_core.ops.chain_lr_linear import lora_linear, usv_linear
from lowrank_core.ops.dct_select import Selection, dct_select
from lowrank_core.ops.dct_select_back import dct_project_back
from lowrank_core.ops.dct_select_feedback import dct_select_feedback_
from lowrank_core.ops.dct_select_moments import rotate_moments
from lowrank_core.ops.dct_select_transform import dct, idct
from lowrank_core.ops.int4_project import int4_project, int4_project_back
from lowrank_core.ops.int4_project_codes import dequantize_int4, quantize_int4
from lowrank_core.ops.int4_project_matrix import Int4Matrix
from lowrank_core.ops.kalman_diag import KalmanStep, kalman_diag_gain, kalman_diag_step, kalman_diag_step_
from lowrank_core.ops.rsvd import RSVD, range_finder, rsvd, svd_lowrank
from lowrank_core.ops.rsvd_augment import AugmentedBasis, augment_truncate
from lowrank_core.ops.rsvd_factor import QB, factored_svd, orthonormalize, qb
from lowrank_core.ops.rsvd_list import range_finder_list
from lowrank_core.ops.rsvd_project import project, project_back
from lowrank_core.ops.subspace_step import subspace_step_

__all__ = [
    "QB",
    "RSVD",
    "AttentionLoRAGrad",
    "AugmentedBasis",
    "Int4Matrix",
    "KalmanStep",
    "Selection",
    "attention_lora_grad",
    "augment_truncate",
    "chain_matmul",
    "dct",
    "dct_project_back",
    "dct_select",
    "dct_select_feedback_",
    "dequantize_int4",
    "factored_svd",
    "idct",
    "int4_project",
    "int4_project_back",
    "kalman_diag_gain",
    "kalman_diag_step",
    "kalman_diag_step_",
    "lora_linear",
    "orthonormalize",
    "positive_features",
    "project",
    "project_back",
    "qb",
    "quantize_int4",
    "range_finder",
    "range_finder_list",
    "rotate_moments",
    "rsvd",
    "subspace_step_",
    "svd_lowrank",
    "usv_linear",
]
