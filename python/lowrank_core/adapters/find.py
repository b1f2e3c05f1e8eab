"""The one place that knows where the factors of a low-rank adapter are in a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

_PEFT_EPS = 1e-5  # that PEFT adds to a rank before it divides by it
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two factors whose product is added to a weight: W + scale b a.

    The parameters may have other shapes than the matrices: convolutions have kernels, a stack of experts has its
    factors in one parameter. `a_of` and `b_of` show the matrices in any tensors of the parameters' shapes.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2, alpha=4))
      >>> pair = adapters.find_pairs(model)[0]
      >>> pair.name, pair.rank, pair.scale, tuple(pair.a_of(pair.a).shape), tuple(pair.b_of(pair.b).shape)
      ('0', 2, 2.0, (2, 6), (4, 2))
    """

    name: str  # qualified, of the module
    a: Tensor  # parameter; as a matrix [r, n]
    b: Tensor  # parameter; as a matrix [m, r]
    module: nn.Module  # that has them
    adapter: str | None = None  # its name, where a module may have several
    values: Tensor | None = None  # parameter [r, 1] of AdaLoRA, between the factors: b diag(values) a
    expert: tuple[int, int] | None = None  # its number, and how many share the parameters
    embedding: bool = False  # whether b a is the transpose of what is added to the weight of an embedding

    @property
    def rank(self) -> int:
        """r: the length of both factors."""
        return int(self.a.shape[0]) // (self.expert[1] if self.expert else 1)

    @property
    def scale(self) -> float:
        """The factor of the product now: alpha / r, or what the module has made of it."""
        module = cast(Any, self.module)
        if self.adapter is None:
            return float(module.scaling)
        number = getattr(module, "ranknum", None)  # of AdaLoRA, whose alpha is divided by it in the forward pass
        return float(module.scaling[self.adapter]) / (
            1.0 if number is None else float(number[self.adapter]) + _PEFT_EPS
        )

    @property
    def trained(self) -> bool:
        """Whether both factors require gradients."""
        return self.a.requires_grad and self.b.requires_grad

    def a_of(self, tensor: Tensor) -> Tensor:
        """[r, n]: the matrix in a tensor of the shape of `a`, as a view where its memory allows."""
        if self.expert is None:
            return tensor if tensor.ndim == 2 else tensor.flatten(1)
        number, count = self.expert
        return tensor.view(count, -1, tensor.shape[-1])[number]

    def b_of(self, tensor: Tensor) -> Tensor:
        """[m, r]: the matrix in a tensor of the shape of `b`, as a view where its memory allows."""
        if self.expert is None:
            return tensor if tensor.ndim == 2 else tensor.flatten(1)
        number, count = self.expert
        return tensor.view(tensor.shape[0], -1, count)[..., number]


def find_pairs(model: nn.Module, *, adapter: str | None = None) -> list[Pair]:
    """The factors of every low-rank adapter in `model`, in the order of its modules.

    Args:
      model: with LoRA, DoRA or AdaLoRA layers of HF PEFT (linear, embedding, convolution, targeted parameters), or
        with `LoRALinear` of this package. Frozen and quantized base weights are left alone.
      adapter: the name of one of PEFT's adapters; None: those that are active.

    Returns:
      One Pair for each, frozen ones too; for a stack of experts one for each expert. Empty if there is none.

    Raises:
      TypeError: `model` is no module.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> adapters.find_pairs(torch.nn.Linear(3, 2))
      []
    """
    require_module("find_pairs", model)
    return [pair for name, module in model.named_modules() for pair in _pairs_of(name, module, adapter)]


def require_module(op: str, model: object) -> None:
    """Raises TypeError if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: `model` must be a torch.nn.Module, got {type(model).__name__}")


def require_pairs(op: str, model: nn.Module, *, trained: bool = True) -> list[Pair]:
    """`find_pairs`, at least one; only those of which both factors are trained, if `trained`.

    Raises:
      TypeError: `model` is no module. ValueError: there is none.
    """
    require_module(op, model)
    found = find_pairs(model)
    kept = [pair for pair in found if pair.trained or not trained]
    if not found:
        raise ValueError(
            f"{op}: `model` must have low-rank adapters, got one without; put them in place by "
            "`peft.get_peft_model` or `LoRALinear`"
        )
    if not kept:
        raise ValueError(
            f"{op}: `model` must train both factors of an adapter, got frozen ones alone; let them require gradients"
        )
    return kept


def _pairs_of(name: str, module: nn.Module, adapter: str | None) -> Iterator[Pair]:
    found = cast(Any, module)
    if isinstance(getattr(module, "lora_A", None), nn.Parameter):
        outer = getattr(module, "outer", found.lora_B)
        yield Pair(name, found.lora_A, outer, module, values=getattr(module, "lora_E", None))
    for first, second in (("lora_A", "lora_B"), _EMBEDDING):
        inner, outer = (_by_adapter(getattr(module, each, None)) for each in (first, second))
        if not inner:
            continue
        for key in [adapter] if adapter is not None else found.active_adapters:
            if key in inner and key in outer:
                values = getattr(module, "lora_E", None)
                pair = Pair(name, _weight(inner[key]), _weight(outer[key]), module, key)
                pair = replace(pair, values=values and values[key], embedding=first == _EMBEDDING[0])
                yield from _experts(pair, getattr(module, "num_experts", 1))


def _experts(pair: Pair, count: int) -> Iterator[Pair]:
    """The pair, or one for each of the experts that share its parameters."""
    if count == 1:
        yield pair
    else:
        for number in range(count):
            yield replace(pair, name=f"{pair.name}[{number}]", expert=(number, count))


def _by_adapter(found: object) -> dict[str, Any]:
    """What PEFT has by the name of an adapter; empty if it is nothing of PEFT's."""
    return dict(found.items()) if isinstance(found, nn.ModuleDict | nn.ParameterDict) else {}


def _weight(found: nn.Module | Tensor) -> Tensor:
    return found if isinstance(found, Tensor) else cast(Tensor, found.weight)
