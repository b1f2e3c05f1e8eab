"""Adapters: their starts and mergers, their training, and what a Kalman filter needs of a model (needs torch)."""
# ruff: noqa: E402  (what is missing must be said before it is imported)

from lowrank_core.extras import require_torch

require_torch(__name__)

from lowrank_core.adapters import kalman, noise
from lowrank_core.adapters.adalora import AdaLoRA
from lowrank_core.adapters.allora import ALLoRAAdamW
from lowrank_core.adapters.cotangents import (
    identity_cotangents,
    lumped_cotangents,
    monte_carlo_cotangents,
    softmax_cotangents,
    split_score,
)
from lowrank_core.adapters.find import Pair, find_pairs
from lowrank_core.adapters.geolora import GeoLoRA
from lowrank_core.adapters.jacobian import jacobian_rows
from lowrank_core.adapters.layers import AdaLoRALinear, LoRALinear, USVLinear
from lowrank_core.adapters.loko import LoKO
from lowrank_core.adapters.loraplus import loraplus_param_groups
from lowrank_core.adapters.lorapro import LoRAProAdamW
from lowrank_core.adapters.merging import extract_lora, merge_adapters
from lowrank_core.adapters.peft_state import PeftAdapter, read_adapter, save_adapter
from lowrank_core.adapters.scaled import ScaledAdamW
from lowrank_core.adapters.square import fold_square_
from lowrank_core.adapters.starts import init_lora_
from lowrank_core.adapters.tape import LinearTape, record_linears
from lowrank_core.adapters.to_peft import to_peft

__all__ = [
    "ALLoRAAdamW",
    "AdaLoRA",
    "AdaLoRALinear",
    "GeoLoRA",
    "LinearTape",
    "LoKO",
    "LoRALinear",
    "LoRAProAdamW",
    "Pair",
    "PeftAdapter",
    "ScaledAdamW",
    "USVLinear",
    "extract_lora",
    "find_pairs",
    "fold_square_",
    "identity_cotangents",
    "init_lora_",
    "jacobian_rows",
    "kalman",
    "loraplus_param_groups",
    "lumped_cotangents",
    "merge_adapters",
    "monte_carlo_cotangents",
    "noise",
    "read_adapter",
    "record_linears",
    "save_adapter",
    "softmax_cotangents",
    "split_score",
    "to_peft",
]
