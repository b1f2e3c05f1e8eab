"""The operators under autograd: one kernel for reverse mode, forward mode and torch.func, made from an `Op`.

torch.library.register_autograd knows reverse mode alone: it drops tangents silently, and torch.func refuses what it
records. This kernel stands in the same place, under the key of autograd. torch.func reaches that key once for each of
its levels, so the kernel records one level at a time, as torch's own kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from lowrank_core.ops.declare import Op

Arguments: TypeAlias = Sequence[Any]
"""Positional arguments of an operator: tensors, lists of them, other values."""


def tensors(args: Arguments) -> Iterator[Tensor]:
    """All tensors of positional arguments."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from (item for item in a if isinstance(item, Tensor))


def each(function: Callable[[Tensor], Any], a: Any) -> Any:
    """`function` of a tensor or of those in a list; None for any other argument."""
    if isinstance(a, Tensor):
        return function(a)
    if isinstance(a, (list, tuple)) and a and all(isinstance(item, Tensor) for item in a):
        return [function(item) for item in a]
    return None


def is_given(a: Any) -> bool:
    """Whether a tangent, or one of a list of them, is there."""
    return any(item is not None for item in a) if isinstance(a, list) else a is not None


def filler(overload: Any) -> Callable[[Arguments, dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of an operator -> the same with the defaults that torch's dispatcher leaves out."""
    positional = [a.default_value for a in overload._schema.arguments if not a.kwarg_only]
    keywords = {a.name: a.default_value for a in overload._schema.arguments if a.kwarg_only and a.has_default_value()}
    return lambda args, options: ((*args, *positional[len(args) :]), keywords | options)


@dataclass(frozen=True)
class Rules:
    """What torch's transforms do with one operator; a family's `autograd.RULES` has them by the operators' names.

    Without `backward` there is no derivative in reverse mode, without `forward` none in forward mode; the operator then
    raises an error that says so. `constants` are arguments without a derivative, in an operator that has one otherwise.
    An operator that writes to its arguments has no derivative at all. torch.vmap asks `mapped` first, before it uses
    the operator's `leading`.
    """

    backward: Callable[..., Any] | None = None
    setup_context: Callable[..., Any] | None = None
    forward: Callable[..., Any] | None = None
    constants: tuple[str, ...] = ()
    mapped: Callable[..., Any] | None = None


class Kernel:
    """What torch calls for one operator under the key of autograd."""

    def __init__(self, op: Op, overload: Any, rules: Rules) -> None:
        self.name, self.overload, self.mutates, self.constants = op.name, overload, op.mutates, rules.constants
        self.spoken = op.name.removesuffix("_backward")  # what the user called
        self.backward, self.setup_context, self.forward = rules.backward, rules.setup_context, rules.forward
        arguments = overload._schema.arguments
        self.positional = [a for a in arguments if not a.kwarg_only]
        self.lists = [str(a.type) == "List[Tensor]" for a in self.positional]
        self.takes_keywords = len(self.positional) < len(arguments)
        self.filled = filler(overload)
        self.function: Any = type(op.name, (_Recorded,), {})  # a name of its own for the nodes of the graph

    def __call__(self, *args: Any, **options: Any) -> Any:
        if getattr(forward_ad, "_current_level", 0) >= 0:
            tangents = [each(_tangent, a) for a in args]
            if any(is_given(t) for t in tangents):
                return self._dual(args, options, tangents)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args)):
            return self._record(args, options)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args, **options)

    def refuse(self, mode: str, argument: str | None = None) -> NoReturn:
        """`mode`: "derivative" or "forward-mode derivative"."""
        if argument is None:
            raise NotImplementedError(f"{self.spoken}: has no {mode}; detach its input")
        raise NotImplementedError(f"{self.spoken}: has no {mode} with respect to `{argument}`; detach it")

    def _record(self, args: Arguments, options: dict[str, Any]) -> Any:
        if self.mutates:
            name = next(a.name for a, given in zip(self.positional, args, strict=False) if _requires_grad(given))
            raise RuntimeError(
                f"{self.name}: `{name}` must not require a gradient, got one that does; detach it, or use "
                "torch.no_grad()"
            )
        form = [len(a) if listed else None for a, listed in zip(args, self.lists, strict=False)]
        flat: list[Any] = []
        for a, length in zip(args, form, strict=True):
            flat.extend((a,) if length is None else a)
        if not torch._C._are_functorch_transforms_active():
            return self.function.apply(self, form, options, *flat)
        with enable_single_level_autograd_function():
            return self.function.apply(self, form, options, *flat)

    def _dual(self, args: Arguments, options: dict[str, Any], tangents: list[Any]) -> Any:
        """The operator of dual tensors: its value, recorded as ever, and its tangent."""
        for argument, tangent in zip(self.positional, tangents, strict=False):
            if is_given(tangent) and argument.name in self.constants:
                self.refuse("derivative", argument.name)
        if self.forward is None:
            self.refuse("derivative" if self.backward is None else "forward-mode derivative")
        primals = [a if (primal := each(_primal, a)) is None else primal for a in args]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args)):
            with forward_ad._set_fwd_grad_enabled(False):  # the graph keeps the duals, which its gradients depend on
                out = self._record(args, options)
            out = _primal(out) if isinstance(out, Tensor) else tuple(map(_primal, out))
        else:
            out = self.overload(*primals, **options)
        inputs, options = self.filled(primals, options)
        tangents = [*tangents, *(None for _ in inputs[len(tangents) :])]
        found = self.forward(self.overload, tangents, inputs, options)
        if isinstance(out, Tensor):
            return _dual(out, found)
        return tuple(o if t is None else _dual(o, t) for o, t in zip(out, found, strict=True))


class _Recorded(torch.autograd.function._SingleLevelFunction):
    """One operator in the graph of one level."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, form: list[int | None], options: dict[str, Any], *flat: Any) -> Any:
        args = _nested(flat, form)
        # Recording here is off; further levels of torch.func have to record all the same.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            out = kernel.overload(*args, **options)
        ctx.kernel, ctx.form = kernel, form
        if kernel.setup_context is not None:
            inputs, settings = kernel.filled(args, options)
            more = {"keyword_only_inputs": settings} if kernel.takes_keywords else {}
            kernel.setup_context(ctx=ctx, inputs=inputs, output=out, **more)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kernel, form = ctx.kernel, ctx.form
        if kernel.backward is None:
            kernel.refuse("derivative")
        flags = ctx.needs_input_grad
        ctx.needs_input_grad = needed = _nested(flags[3:], form)
        for argument, flag in zip(kernel.positional, needed, strict=False):
            if flag is True and argument.name in kernel.constants:
                kernel.refuse("derivative", argument.name)
        try:
            found = kernel.backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = flags
        found = found if isinstance(found, tuple) else (found,)
        flat: list[Any] = []
        for grad, length in zip(found, form, strict=False):  # arguments left at their defaults have no place in `form`
            flat.extend((grad,) if length is None else grad)
        return None, None, None, *flat


def multilinear(overload: Any, tangents: Arguments, inputs: Arguments, options: dict[str, Any]) -> Tensor | None:
    """The tangent of an operator that is linear in each argument by itself: the sum of its values with one argument
    replaced."""
    found: Tensor | None = None
    for i, tangent in enumerate(tangents):
        given, listed = (tangent, True) if isinstance(tangent, list) else ([tangent], False)
        for j, replacement in enumerate(given):
            if replacement is None:
                continue
            changed = [*inputs[i][:j], replacement, *inputs[i][j + 1 :]] if listed else replacement
            part = overload(*inputs[:i], changed, *inputs[i + 1 :], **options)
            found = part if found is None else found + part
    return found


def call_constant(op: str, arrays: Sequence[Tensor], compute: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """`compute()` of `arrays`. If a graph is recorded, it ends here, with a node that raises."""
    for a in arrays:
        if torch._C._functorch.is_functorch_wrapped_tensor(a):
            raise NotImplementedError(
                f"{op}: has no derivative and cannot be mapped, its result depends on the data; call it outside of "
                "torch.func and torch.vmap"
            )
        if a.is_floating_point() and _tangent(a) is not None:
            raise NotImplementedError(f"{op}: has no derivative; detach its input")
    if torch.is_grad_enabled() and any(a.requires_grad for a in arrays):
        found: tuple[Any, ...] = _Constant.apply(op, compute, *arrays)  # type: ignore[no-untyped-call]
        return found
    return compute()


class _Constant(torch.autograd.Function):
    """The end of a graph."""

    @staticmethod
    def forward(ctx: Any, op: str, compute: Callable[[], tuple[Any, ...]], *arrays: Tensor) -> tuple[Any, ...]:
        ctx.op = op
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{ctx.op}: has no derivative; detach its input")


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def _tangent(a: Tensor) -> Tensor | None:
    return _unpacked(a).tangent if a.is_floating_point() else None


def _primal(a: Tensor) -> Tensor:
    return _unpacked(a).primal if a.is_floating_point() else a


def _unpacked(a: Tensor) -> forward_ad.UnpackedDualTensor:
    unpacked: forward_ad.UnpackedDualTensor = forward_ad.unpack_dual(a)  # type: ignore[no-untyped-call]
    return unpacked


def _requires_grad(a: Any) -> bool:
    return any(t.requires_grad for t in tensors((a,)))


def _nested(flat: Sequence[Any], form: list[int | None]) -> tuple[Any, ...]:
    """The arguments of that form: a list where it has a length."""
    items = iter(flat)
    return tuple(next(items) if n is None else [next(items) for _ in range(n)] for n in form)
