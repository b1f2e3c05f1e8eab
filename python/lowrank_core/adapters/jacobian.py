"""Rows of a model's Jacobian with respect to adapter parameters: one backward pass for each row.

For y = x Wᵀ the row of W for a cotangent delta at y is deltaᵀ x. An adapter is two such layers, x Aᵀ and (x Aᵀ) Bᵀ:
their inputs are recorded once, in the forward pass, and every row asks autograd for the deltas alone. Where a weight is
used in another way too, the graph shows it, and autograd finds all of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lowrank_core.adapters.cotangent_rows import Cotangents, identity_rows, rows_of
from lowrank_core.adapters.graph import Walk
from lowrank_core.adapters.tape import Call, LinearTape


def jacobian_rows(
    outputs: Tensor,
    params: Sequence[Tensor],
    cotangents: Tensor | Cotangents | None = None,
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
        `softmax_cotangents` and its siblings. `Cotangents` are made one at a time, in the memory of one.
      tape: from `record_linears` around the forward pass. Rows of recorded layers are then outer products of recorded
        inputs with cotangents at the layers' outputs, taken for `chunk` rows by one product, in the widest dtype of
        the two and of the weight (float32 under autocast); all others, those of weights that have further uses among
        them, and all without a tape, come from autograd directly.
      chunk: >= 1, rows whose cotangents at the layers' outputs are held at a time: chunk * tokens * (sum of d_out)
        numbers beside the result, which has k * (number of parameters).
      batched: take `chunk` rows by one vectorized backward pass instead of one each. Several times faster where a pass
        is short; every operator of the backward pass needs a batching rule of torch.vmap, and activations' cotangents
        are held for `chunk` rows at once.
      retain_graph: whether the graph survives the last row.

    Returns:
      One tensor [k, *param.shape] for each of `params`, in its dtype: the lists that `kalman_diag_step_` takes. They
      are constants, as gradients without create_graph; `cotangents` are read detached.

    Raises:
      ValueError: a shape that does not fit; a parameter that requires no gradient; outputs without a graph, of a graph
        that reaches none of `params`, or through reentrant checkpointing; an input on the tape that was changed since.
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
    source = _checked(outputs, params, cotangents, chunk)
    calls, plain = _divided(outputs, params, tape)
    place = {id(p): i for i, p in enumerate(params) if i not in plain}
    count, coming = len(source), iter(source)
    rows = [p.new_empty((count, *p.shape)) for p in params]
    targets = [call.edge for call in calls] + [get_gradient_edge(params[i]) for i in plain]
    for begin in range(0, count, chunk):
        size = min(chunk, count - begin)
        keep = retain_graph or begin + size < count
        parts = [rows[i][begin : begin + size] for i in range(len(params))]
        deltas = [outputs.new_empty((size, *call.shape), dtype=call.dtype) for call in calls]
        _backward(outputs, targets, islice(coming, size), keep, batched, [*deltas, *(parts[i] for i in plain)])
        written: set[int] = set()
        for call, delta in zip(calls, deltas, strict=True):
            for index, is_bias in _places(call, place):
                _put_rows(parts[index], call.x, delta, is_bias, index in written)
                written.add(index)
    return rows


def _divided(outputs: Tensor, params: Sequence[Tensor], tape: LinearTape | None) -> tuple[list[Call], list[int]]:
    """The calls that give rows, and the indices of the parameters that autograd gives the rows of."""
    recorded = tape.calls if tape else []
    walk = Walk(outputs, params, recorded)
    if walk.hidden:
        raise ValueError(
            "jacobian_rows: `outputs` must not come through reentrant checkpointing, whose graph does not show the "
            "parameters, got such a graph; checkpoint with use_reentrant=False"
        )
    met = [call for i, call in enumerate(recorded) if i in walk.met]
    reached = walk.elsewhere | {id(p) for call in met for p, _ in call.parameters}
    if params and not any(id(p) in reached for p in params):
        raise ValueError(
            "jacobian_rows: `outputs` must depend on one of `params`, got a graph that reaches none of them; pass the "
            "parameters that the forward pass used"
        )
    # A hook on a parameter sees what autograd finds, and nothing else.
    alone = {id(p) for p in params if id(p) not in walk.elsewhere and not p._backward_hooks}
    taped = alone & {id(p) for call in met for p, _ in call.parameters}
    calls = [call for call in met if any(id(p) in taped for p, _ in call.parameters)]
    for call in calls:
        if id(call.weight) in taped and not call.x.is_inference() and call.x._version != call.version:
            raise ValueError(
                f"jacobian_rows: `tape` must hold inputs as the forward pass read them, got one of shape "
                f"{list(call.x.shape)} that was changed in place since; clone it before the model reads it"
            )
    first = {id(p): i for i, p in reversed(list(enumerate(params)))}
    return calls, [i for i, p in enumerate(params) if id(p) not in taped or first[id(p)] != i]


def _checked(
    outputs: Tensor, params: Sequence[Tensor], cotangents: Tensor | Cotangents | None, chunk: int
) -> Cotangents:
    if chunk < 1:
        raise ValueError(f"jacobian_rows: `chunk` must be >= 1, got {chunk}")
    if not outputs.requires_grad:
        raise ValueError(
            "jacobian_rows: `outputs` must have a graph, got a tensor that requires no gradient; run the forward pass "
            "with gradients enabled"
        )
    for i, p in enumerate(params):
        if not p.requires_grad:
            raise ValueError(
                f"jacobian_rows: `params[{i}]` must require a gradient, got one that does not; leave it out"
            )
    if cotangents is None:
        return identity_rows(outputs)
    if isinstance(cotangents, Cotangents):
        return cotangents
    if tuple(cotangents.shape[1:]) != tuple(outputs.shape) or cotangents.ndim != outputs.ndim + 1:
        raise ValueError(
            f"jacobian_rows: `cotangents` must be {['k', *outputs.shape]}, got shape {list(cotangents.shape)}"
        )
    return rows_of(cotangents)


def _backward(
    outputs: Tensor, targets: list[GradientEdge], some: Iterator[Tensor], keep: bool, batched: bool, into: list[Tensor]
) -> None:
    """Fills [chunk, *shape] for each target, by one pass or by one for each of `some` cotangents."""
    if batched and into:
        size = len(into[0])
        together = torch.empty((size, *outputs.shape), dtype=outputs.dtype, device=outputs.device)
        for number in range(size):
            together[number] = next(some)
        _pass(outputs, targets, together, keep, True, into)
        return
    slots = list(zip(*(rows.unbind() for rows in into), strict=True))
    for number, rows in enumerate(slots):
        cotangent = next(some).to(outputs.dtype)
        _pass(outputs, targets, cotangent, keep or number + 1 < len(slots), False, rows)


def _pass(
    outputs: Tensor, targets: list[GradientEdge], cotangent: Tensor, keep: bool, batched: bool, rows: Sequence[Tensor]
) -> None:
    grads = torch.autograd.grad(
        outputs, targets, cotangent, retain_graph=keep, allow_unused=True, is_grads_batched=batched
    )
    found = [(row, grad) for row, grad in zip(rows, grads, strict=True) if grad is not None]
    if len(found) < len(grads):
        torch._foreach_zero_([row for row, grad in zip(rows, grads, strict=True) if grad is None])
    torch._foreach_copy_([row for row, _ in found], [grad for _, grad in found])


def _places(call: Call, place: dict[int, int]) -> list[tuple[int, bool]]:
    """(index, is it the bias) of those parameters of a call whose rows it gives."""
    return [(place[id(p)], is_bias) for p, is_bias in call.parameters if id(p) in place]


def _put_rows(target: Tensor, x: Tensor, delta: Tensor, is_bias: bool, add: bool) -> None:
    """target[k] <- (+) delta_kᵀ x for a weight, the sum of delta_k for a bias; delta [k, ..., d_out].

    In the widest of their dtypes: under autocast deltas are narrower than weights and inputs.
    """
    dtype = torch.promote_types(torch.promote_types(delta.dtype, x.dtype), target.dtype)
    flat = delta.reshape(delta.shape[0], -1, delta.shape[-1]).to(dtype)
    if is_bias:
        found = flat.sum(1)
    else:
        inputs = x.reshape(-1, x.shape[-1]).to(dtype).expand(flat.shape[0], -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            found = torch.bmm(flat.mT, inputs)
    if add:
        target += found
    else:
        target.copy_(found)
