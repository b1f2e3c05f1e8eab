"""What a forward pass does with the weights of linear layers: recorded where torch.nn.functional.linear is called, so
that hooks, other forward methods and calls without a module change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Call:
    """One call of torch.nn.functional.linear."""

    weight: Tensor
    bias: Tensor | None
    x: Tensor  # [..., d_in], detached
    version: int  # of x
    source: GradientEdge | None  # of x, None where it needs no gradient
    edge: GradientEdge  # of y, as linear returned it
    shape: torch.Size  # of y
    dtype: torch.dtype  # of y

    @property
    def parameters(self) -> tuple[tuple[Tensor, bool], ...]:
        """(parameter, is it the bias)."""
        return ((self.weight, False),) if self.bias is None else ((self.weight, False), (self.bias, True))


@dataclass
class LinearTape:
    """What `record_linears` has seen: the calls of linear layers, in their order.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Linear(3, 2)
      >>> with adapters.record_linears(model) as tape:
      ...     y = model(torch.ones(3))
      >>> len(tape.calls), len(tape.weights())
      (1, 2)
    """

    calls: list[Call] = field(default_factory=list)

    def weights(self) -> set[int]:
        """Identities of the parameters whose rows can be taken from the tape."""
        return {id(parameter) for call in self.calls for parameter, _ in call.parameters}


@contextmanager
def record_linears(model: nn.Module, params: Sequence[Tensor] | None = None) -> Iterator[LinearTape]:
    """Records how the forward pass uses linear layers that hold one of `params`, for `jacobian_rows`.

    Args:
      model: any module; LoRA layers of HF PEFT are pairs of `torch.nn.Linear` and are found as such. What counts is
        that a parameter of the model is the weight or the bias of a call of torch.nn.functional.linear.
      params: parameters of interest; None: all that require gradients.

    Yields:
      The tape. It holds the inputs of those layers until it is dropped: the memory that autograd keeps anyway. Run one
      forward pass inside. Weights that are computed (parametrized, weight-normed) are left to autograd, as are those
      that `jacobian_rows` finds used in another way too.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Linear(3, 2)
      >>> with adapters.record_linears(model) as tape:
      ...     y = model(torch.tensor([1.0, 2.0, 3.0]))
      >>> adapters.jacobian_rows(y, [model.weight], tape=tape)[0][1].tolist()
      [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
    """
    own = {id(p) for p in model.parameters() if p.requires_grad}
    wanted = own if params is None else own & {id(p) for p in params}
    tape = LinearTape()
    with _Recorder(tape, wanted):
        yield tape


class _Recorder(TorchFunctionMode):
    def __init__(self, tape: LinearTape, wanted: set[int]) -> None:
        super().__init__()
        self.tape, self.wanted = tape, wanted

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear:
            self._record(result, *args, **(kwargs or {}))
        return result

    def _record(self, y: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        used = id(weight) in self.wanted or id(bias) in self.wanted
        if not used or not y.requires_grad or weight.ndim != 2 or input.layout != torch.strided:
            return
        source = get_gradient_edge(input) if input.requires_grad else None
        version = 0 if input.is_inference() else input._version
        self.tape.calls.append(
            Call(weight, bias, input.detach(), version, source, get_gradient_edge(y), y.shape, y.dtype)
        )
