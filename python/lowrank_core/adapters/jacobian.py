"""Rows of a model's Jacobian with respect to adapter parameters: one backward pass for each row.

For y = x Wᵀ the row of W for a cotangent delta at y is deltaᵀ x. An adapter is two such layers, x Aᵀ and (x Aᵀ) Bᵀ:
their inputs are recorded once, in the forward pass, and every row asks autograd for the deltas alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowrank_core.adapters.cotangents import identity_cotangents


@dataclass(frozen=True)
class _Call:
    """One forward pass through a linear layer."""

    layer: nn.Linear
    x: Tensor  # [..., d_in], detached
    y: Tensor  # [..., d_out], in the graph
    version: int  # of y when it was returned


@dataclass
class LinearTape:
    """What `record_linears` has seen: inputs and outputs of linear layers, in the order of their calls.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Linear(3, 2)
      >>> with adapters.record_linears(model) as tape:
      ...     y = model(torch.ones(3))
      >>> len(tape.calls), len(tape.weights())
      (1, 2)
    """

    calls: list[_Call] = field(default_factory=list)

    def weights(self) -> set[int]:
        """Identities of the parameters whose rows can be taken from the tape."""
        return {
            id(parameter)
            for call in self.calls
            for parameter in (call.layer.weight, call.layer.bias)
            if parameter is not None
        }


@contextmanager
def record_linears(model: nn.Module, params: Sequence[Tensor] | None = None) -> Iterator[LinearTape]:
    """Records the linear layers of `model` that hold one of `params`, for `jacobian_rows`.

    Args:
      model: any module; LoRA layers of HF PEFT are pairs of `torch.nn.Linear` and are found as such.
      params: parameters of interest; None: all that require gradients.

    Yields:
      The tape. It holds the inputs of those layers until it is dropped: the memory that autograd keeps anyway. Run one
      forward pass inside; every parameter has to be used through its layer alone (a weight that is also used elsewhere
      has to be left to autograd: record without it).

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Linear(3, 2)
      >>> with adapters.record_linears(model) as tape:
      ...     y = model(torch.tensor([1.0, 2.0, 3.0]))
      >>> adapters.jacobian_rows(y, [model.weight], tape=tape)[0][1].tolist()
      [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
    """
    wanted = {id(p) for p in (model.parameters() if params is None else params) if p.requires_grad}
    tape, handles = LinearTape(), []

    def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        if y.requires_grad and isinstance(layer, nn.Linear):
            tape.calls.append(_Call(layer, args[0].detach(), y, y._version))

    for module in model.modules():
        if type(module) is nn.Linear and any(id(p) in wanted for p in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(hook))
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def jacobian_rows(
    outputs: Tensor,
    params: Sequence[Tensor],
    cotangents: Tensor | None = None,
    *,
    tape: LinearTape | None = None,
    chunk: int = 8,
    batched: bool = False,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Rows `c_kᵀ ∂outputs/∂params` of the Jacobian, by one backward pass for each cotangent c_k.

    Args:
      outputs: [...], what a forward pass returned, its graph intact.
      params: the parameters, which the graph depends on.
      cotangents: [k, *outputs.shape], in `outputs`' dtype or wider; None: the identity, k = number of outputs. See
        `softmax_cotangents` and its siblings.
      tape: from `record_linears` around the forward pass. Rows of recorded layers are then outer products of recorded
        inputs with cotangents at the layers' outputs, taken for `chunk` rows by one product; all others, and all
        without a tape, come from autograd directly.
      chunk: >= 1, rows whose cotangents at the layers' outputs are held at a time: chunk * tokens * (sum of d_out)
        numbers beside the result, which has k * (number of parameters).
      batched: take `chunk` rows by one vectorized backward pass instead of one each. Several times faster where a pass
        is short; every operator of the backward pass needs a batching rule of torch.vmap, and activations' cotangents
        are held for `chunk` rows at once.
      retain_graph: whether the graph survives the last row.

    Returns:
      One tensor [k, *param.shape] for each of `params`, in its dtype: the lists that `kalman_diag_step_` takes.

    Raises:
      ValueError: a shape that does not fit; an output of a recorded layer was changed in place.
      RuntimeError: from autograd, where the graph is gone.

    Numerics: that of torch's backward passes. k passes, k / chunk vectorized ones; with the forward pass 1 + k.
    Source: reverse-mode differentiation; layer inputs times cotangents as in per-sample gradients (Goodfellow 2015,
    arXiv 1510.01799).

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Linear(3, 2)
      >>> y = model(torch.tensor([1.0, 2.0, 3.0]))
      >>> weight, bias = adapters.jacobian_rows(y, [model.weight, model.bias])
      >>> weight.shape, bias.tolist()
      (torch.Size([2, 2, 3]), [[1.0, 0.0], [0.0, 1.0]])
    """
    cotangents = _checked(outputs, cotangents, chunk)
    place = {id(p): i for i, p in enumerate(params)}
    calls = [call for call in (tape.calls if tape else ()) if _parameters(call, place)]
    taped = {index for call in calls for index, _ in _parameters(call, place)}
    plain = [i for i in range(len(params)) if i not in taped]
    count = cotangents.shape[0]
    rows = [p.new_empty((count, *p.shape)) for p in params]
    for call in calls:
        if call.y._version != call.version:
            raise ValueError(
                "jacobian_rows: `tape` must hold outputs as their layers returned them, got one that was changed in "
                "place; make the operation behind that layer out of place"
            )
    targets = [call.y for call in calls] + [params[i] for i in plain]
    for begin in range(0, count, chunk):
        part = cotangents[begin : begin + chunk]
        keep = retain_graph or begin + len(part) < count
        parts = [rows[i][begin : begin + len(part)] for i in range(len(params))]
        deltas = _backward(outputs, targets, part, keep, batched, [parts[i] for i in plain])
        written: set[int] = set()
        for call, delta in zip(calls, deltas, strict=True):
            for index, is_bias in _parameters(call, place):
                _put_rows(parts[index], call.x, delta, is_bias, index in written)
                written.add(index)
    return rows


def _checked(outputs: Tensor, cotangents: Tensor | None, chunk: int) -> Tensor:
    if chunk < 1:
        raise ValueError(f"jacobian_rows: `chunk` must be >= 1, got {chunk}")
    if cotangents is None:
        return identity_cotangents(outputs)
    if tuple(cotangents.shape[1:]) != tuple(outputs.shape) or cotangents.ndim != outputs.ndim + 1:
        raise ValueError(
            f"jacobian_rows: `cotangents` must be {['k', *outputs.shape]}, got shape {list(cotangents.shape)}"
        )
    return cotangents.to(outputs.dtype)


def _backward(
    outputs: Tensor, targets: list[Tensor], cotangents: Tensor, keep: bool, batched: bool, plain: list[Tensor]
) -> list[Tensor]:
    """[chunk, *shape] for those of `targets` that stand before the parameters; the rows of these go to `plain`."""
    calls = len(targets) - len(plain)
    if batched:
        passes: list[tuple[Tensor, int | slice]] = [(cotangents, slice(None))]
    else:
        passes = [(cotangent, k) for k, cotangent in enumerate(cotangents)]
    deltas = [y.new_empty((len(cotangents), *y.shape)) for y in targets[:calls]]
    for number, (cotangent, at) in enumerate(passes):
        last = number + 1 == len(passes)
        grads = torch.autograd.grad(
            outputs, targets, cotangent, retain_graph=keep or not last, allow_unused=True, is_grads_batched=batched
        )
        for into, grad in zip((*deltas, *plain), grads, strict=True):
            into[at] = 0.0 if grad is None else grad
    return deltas


def _parameters(call: _Call, place: dict[int, int]) -> list[tuple[int, bool]]:
    """(index, is it the bias) of those parameters of a layer that are asked for."""
    layer = call.layer
    named = ((layer.weight, False), (layer.bias, True))
    return [(place[id(p)], is_bias) for p, is_bias in named if p is not None and id(p) in place]


def _put_rows(target: Tensor, x: Tensor, delta: Tensor, is_bias: bool, add: bool) -> None:
    """target[k] <- (+) delta_kᵀ x for a weight, the sum of delta_k for a bias; delta [k, ..., d_out]."""
    flat = delta.reshape(delta.shape[0], -1, delta.shape[-1])
    if is_bias:
        found = flat.sum(1)
    else:
        inputs = x.reshape(-1, x.shape[-1]).to(flat.dtype).expand(flat.shape[0], -1, -1)
        found = torch.bmm(flat.mT, inputs)
    if add:
        target += found
    else:
        target.copy_(found)
