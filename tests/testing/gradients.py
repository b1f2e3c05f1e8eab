"""What there is of gradients while `fused_backward` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lowrank_core.optim import LowRankOptimizer
from torch import Tensor, nn


def bytes_held(optimizer: LowRankOptimizer) -> int:
    """Bytes of what a handle holds of the gradients of `optimizer`."""
    total = 0
    for held in optimizer._source.held.values():
        tensors = [*(held.draft.low or ()), *(() if held.draft.freed else held.draft.grads)]
        tensors += [] if held.sketch is None else [held.sketch]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
    return total


@contextmanager
def every_gradient_alive(model: nn.Module, optimizer: LowRankOptimizer) -> Iterator[list[int]]:
    """Notes, whenever a gradient has come, the bytes of all that are there then: in `.grad` and held by a handle.

    To be entered before there is a handle, whose hooks would come first.
    """
    found: list[int] = []

    def note(_: Tensor) -> None:
        there = [param.grad for param in model.parameters() if param.grad is not None]
        held = 0 if optimizer._source is None else bytes_held(optimizer)
        found.append(held + sum(grad.numel() * grad.element_size() for grad in there if not grad.is_sparse))

    hooks = [param.register_post_accumulate_grad_hook(note) for param in model.parameters()]
    yield found
    for hook in hooks:
        hook.remove()
