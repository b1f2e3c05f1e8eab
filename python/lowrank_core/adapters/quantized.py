"""Frozen linear layers whose weight is stored as codes: how they are told, and what they mean as a matrix."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from torch import Tensor, nn

_CODES = ("Params4bit", "Int8Params")  # of bitsandbytes, whose 4-bit codes may be stored as floating point


def is_quantized(weight: object) -> bool:
    """True for the codes of bitsandbytes and torchao, and for any tensor that is not floating-point."""
    if not isinstance(weight, Tensor):
        return False
    kind = type(weight)
    return kind.__name__ in _CODES or kind.__module__.startswith("torchao") or not weight.is_floating_point()


def can_be_read(layer: nn.Module) -> bool:
    """Whether `dequantized` knows what the codes of `layer` mean."""
    weight: Any = layer.weight
    kind = type(weight)
    if kind.__name__ == "Params4bit":
        return getattr(weight, "quant_state", None) is not None
    if kind.__name__ == "Int8Params":
        return _int8_holder(layer) is not None
    return kind.__module__.startswith("torchao")


def dequantized(layer: nn.Module) -> Tensor:
    """[out, in]: what the codes of `layer` mean, in the dtype that their library gives it."""
    weight: Any = layer.weight
    if type(weight).__name__ == "Params4bit":
        layer.state_dict()  # on a host an evaluation has ordered the codes in another way, which this takes back
        library = import_module("bitsandbytes.functional")
        return cast(Tensor, library.dequantize_4bit(weight.data, weight.quant_state))
    if type(weight).__name__ == "Int8Params":
        holder = _int8_holder(layer)
        return cast(Tensor, holder.CB.float() * (holder.SCB.float() / 127).unsqueeze(1))
    return cast(Tensor, weight.dequantize())


def _int8_holder(layer: nn.Module) -> Any:
    """What has the codes and their scales: the weight, and from the first forward pass on the layer's state."""
    for holder in (layer.weight, getattr(layer, "state", None)):
        if getattr(holder, "SCB", None) is not None:
            return holder
    return None
