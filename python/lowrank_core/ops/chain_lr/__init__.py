"""Products of chains of matrices, layers with a low-rank part, and adapter gradients of attention scores."""

from lowrank_core.ops.chain_lr.attention import AttentionLoRAGrad, attention_lora_grad
from lowrank_core.ops.chain_lr.features import positive_features
from lowrank_core.ops.chain_lr.linear import lora_linear, usv_linear
from lowrank_core.ops.chain_lr.matmul import chain_matmul

__all__ = [
    "AttentionLoRAGrad",
    "attention_lora_grad",
    "chain_matmul",
    "lora_linear",
    "positive_features",
    "usv_linear",
]
