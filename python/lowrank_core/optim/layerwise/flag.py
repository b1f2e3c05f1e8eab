"""What is left to see in `.grad` of gradients that were taken: one element, which a `GradScaler` reads and scales."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.hooks import RemovableHandle


class Flag:
    """A sparse gradient of one element on one parameter, the owner: 1, or inf if a gradient was not finite.

    `GradScaler` looks for gradients that are not finite in `.grad`, and unscales them there; without any it ends in an
    assertion. Whatever multiplies all `.grad` multiplies the flag, so that its value tells by what. It also shows that
    gradients were set to None or to zero.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        candidates = [param for param in params if param.numel()]  # a sparse gradient of an empty one holds nothing
        wide = [param for param in candidates if param.dtype in (torch.float32, torch.float64)]
        self._owner = next(iter([*wide, *candidates]), None)
        self._up = False
        self._wiped = False
        self._finite: bool | Tensor = True
        self._hook: RemovableHandle | None = None
        if self._owner is not None:
            hook = _making_room(weakref.ref(self))
            self._hook = self._owner.register_hook(hook)  # type: ignore[no-untyped-call]

    def owns(self, param: Tensor) -> bool:
        """True if what `param` has for a gradient is the flag."""
        return self._up and param is self._owner and param.grad is not None and param.grad.is_sparse

    def note(self, finite: bool | Tensor) -> None:
        """Remembers whether a gradient was finite: a bool, or a 0-d one that stays on its device."""
        if finite is not True:
            mine = self._finite
            both = isinstance(finite, Tensor) and isinstance(mine, Tensor)
            self._finite = mine & (finite.to(mine.device) if both else finite)  # type: ignore[union-attr]

    @_disable_dynamo  # it is called by backward, which a compiled training step calls
    def show(self) -> None:
        """Puts the flag where a `GradScaler` sees it, unless it is there or the owner has a gradient."""
        owner = self._owner
        if owner is None or owner.grad is not None:
            return
        value = torch.ones(1, dtype=owner.dtype, device=owner.device)
        finite = self._finite
        if isinstance(finite, Tensor):
            value = torch.where(finite.to(owner.device), value, math.inf)
        elif not finite:
            value.fill_(math.inf)
        place = torch.zeros(owner.ndim, 1, dtype=torch.long, device=owner.device)
        owner.grad = torch.sparse_coo_tensor(place, value, owner.shape, is_coalesced=True, check_invariants=False)
        self._up = True

    def hide(self) -> Tensor | None:
        """Takes the flag away, and returns what it was multiplied by: 0-d; None if it was not shown."""
        owner, value = self._owner, None
        if owner is not None and self.owns(owner) and owner.grad is not None:
            found = owner.grad._values()
            value = found[0].real if found.numel() else None
            owner.grad = None
        self._up = False
        return value

    def wiped(self) -> bool:
        """True if the flag was shown, and the gradients have been set to None or to zero since."""
        if self._up and self._owner is not None:
            grad = self._owner.grad
            self._wiped = self._wiped or grad is None or (grad.is_sparse and grad._nnz() == 0)
        return self._wiped

    def make_room(self) -> None:
        """Steps aside for a gradient of the owner, which may not come: then the flag is back after backward."""
        if not self.wiped() and self._up:
            self.hide()
            at_the_end_of_backward(self.show)

    def reset(self) -> None:
        """Begins anew: no gradient has been seen."""
        self.hide()
        self._finite, self._wiped = True, False

    def remove(self) -> None:
        """Takes flag and hook away."""
        self.hide()
        if self._hook is not None:
            self._hook.remove()


def _making_room(flag: weakref.ref[Flag]) -> Callable[[Tensor], None]:
    """A hook that runs before a gradient is added to that of the owner."""

    @_disable_dynamo
    def before(grad: Tensor) -> None:
        if (alive := flag()) is not None:
            alive.make_room()

    before.__torch_unserializable__ = True  # type: ignore[attr-defined]
    return before


def at_the_end_of_backward(call: Callable[[], None]) -> None:
    """Calls `call` when the backward pass that runs now is over."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
