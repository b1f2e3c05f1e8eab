"""The weight that an adapter adds to, as the matrix that the product of its factors has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair
from lowrank_core.adapters.quantized import can_be_read, dequantized, is_quantized

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class BaseWeight:
    """W0 of one pair.

    Example: of an embedding [11, 6] the matrix is [6, 11], of a convolution [8, 6, 3] it is [8, 18].
    """

    param: Tensor
    expert: int | None  # which of the matrices of `param`
    transposed: bool  # whether the product is added to the transpose
    codes: nn.Module | None = None  # the layer, where `param` are codes; they are read, and not written

    def matrix_of(self, tensor: Tensor) -> Tensor:
        """[m, n]: the matrix in a tensor of the shape of `param`."""
        matrix = self._own(tensor).flatten(1)
        return matrix.mT if self.transposed else matrix

    @property
    def matrix(self) -> Tensor:
        """[m, n]; of codes what they mean."""
        return self.matrix_of(self.param.detach() if self.codes is None else dequantized(self.codes))

    @property
    def like(self) -> Tensor:
        """A matrix of the shape and dtype; of codes one without values, which is there without reading them."""
        if self.codes is None:
            return self.matrix
        layer: Any = self.codes
        return torch.empty(layer.out_features, layer.in_features, device="meta")

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Rounds `matrix` [m, n] to the dtype of the weight, in place."""
        own = self._own(self.param)
        own.copy_((matrix.mT if self.transposed else matrix).reshape(own.shape))

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor if self.expert is None else tensor[self.expert]


class Fault(NamedTuple):
    """Why a pair is refused: what was found, and what to do."""

    what: str
    fix: str = "take it out of the adapter's target modules"


def base_weight(pair: Pair, moved: bool = False) -> BaseWeight | Fault:
    """The weight beside `pair`, or why it cannot be looked at; or why it cannot be written, if it is to be `moved`."""
    module = cast(Any, pair.module)
    base: Any = module.get_base_layer() if hasattr(module, "get_base_layer") else getattr(module, "base_layer", None)
    param = module.get_param() if hasattr(module, "get_param") else getattr(base, "weight", None)
    kind = type(base).__name__
    if not isinstance(param, Tensor):
        return Fault(f"a layer {kind} without a weight")
    codes = is_quantized(param)
    if (codes and (moved or not can_be_read(base))) or not (codes or param.dtype in DTYPES):
        stored = f"{type(param).__name__}, {str(param.dtype).removeprefix('torch.')}"
        others = 'by "eva", "lora_xs" or "lora_sb"' if moved else 'by "eva"'
        return Fault(f"a quantized weight ({stored})", f"start before it is quantized, or {others}")
    if param.is_meta:
        return Fault("a weight without values, on the device meta", "load the weights first")
    if getattr(base, "groups", 1) != 1:
        return Fault(f"a layer {kind} of {base.groups} groups")
    swapped = not getattr(module, "_did_swap_in_out_features", True)  # experts stored as [in, out]
    transposed = pair.embedding or bool(getattr(module, "fan_in_fan_out", False))
    expert = None if pair.expert is None else pair.expert[0]
    found = BaseWeight(param, expert, transposed or (expert is not None and swapped), base if codes else None)
    shape, product = tuple(found.like.shape), (pair.b_of(pair.b).shape[0], pair.a_of(pair.a).shape[1])
    return found if shape == product else Fault(f"a weight {list(shape)} beside a product {list(product)}")
