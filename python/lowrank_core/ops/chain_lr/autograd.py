"""Which derivatives the family's operators have."""

from __future__ import annotations

from lowrank_core.ops.chain_lr.backward import (
    chain_backward,
    lora_backward,
    lora_second,
    map_chain,
    save_chain,
    save_gradient,
    save_layer,
    usv_backward,
    usv_second,
)
from lowrank_core.ops.chain_lr.forward import lora_forward, lora_gradient_forward, usv_forward, usv_gradient_forward
from lowrank_core.ops.torch_autograd import Rules, multilinear

RULES = {
    "chain_matmul": Rules(chain_backward, save_chain, multilinear, mapped=map_chain),
    "lora_linear": Rules(lora_backward, save_layer, lora_forward),
    "usv_linear": Rules(usv_backward, save_layer, usv_forward),
    "lora_linear_backward": Rules(lora_second, save_gradient, lora_gradient_forward),
    "usv_linear_backward": Rules(usv_second, save_gradient, usv_gradient_forward),
}
