"""Which parameters and gradients an optimizer takes, and the errors for those that it refuses.

The checks run where it costs nothing to stop: parameters are checked when they are added, and everything is checked
once more before a step has changed or counted anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lowrank_core.memory.geometry import FULL, Geometry, Side, check_stack
from lowrank_core.memory.plan import PlanRow
from lowrank_core.ops.arrays import are_ordinary, overlaps_itself
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.slots import Slot, number_name, steppable


def admit(op: str, group: dict[str, Any], others: Sequence[dict[str, Any]]) -> None:
    """Checks the parameters of a new `group` beside the `others`, and gives names to all of them or to none.

    torch takes no mixture: if some have names, the rest get their numbers as names.
    """
    if isinstance(group["params"], set):
        return  # torch refuses it
    entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    given = group.pop("param_names", None)  # of a group that another optimizer had
    starts = [0, *accumulate(len(other["params"]) for other in others)]
    names = given or list(map(number_name, range(starts[-1], starts[-1] + len(entries))))
    pairs = [entry if isinstance(entry, tuple) else (names[i], entry) for i, entry in enumerate(entries)]
    for name, param in pairs:
        _check_trainable(op, name, param)
        if group["stacked"] and isinstance(param, Tensor):  # torch refuses what is no tensor
            check_stack(op, name, tuple(param.shape))
    with_names = any(isinstance(entry, tuple) for entry in entries) or any("param_names" in other for other in others)
    if not given and not with_names:
        group["params"] = entries
        return
    group["params"] = pairs
    for start, other in zip(starts, others, strict=False):
        count = len(other["params"])
        other.setdefault("param_names", list(map(number_name, range(start, start + count))))


def _check_trainable(op: str, name: str, param: Any) -> None:
    """Refuses a parameter that could never be stepped. Frozen parameters of any dtype are accepted.

    Raises:
      TypeError: it is to be trained in a dtype that no step computes in.
      ValueError: it is lazy and has no shape yet.
      NotImplementedError: it is a wrapper, such as a DTensor.
    """
    if not isinstance(param, Tensor) or not param.requires_grad:
        return  # torch refuses what is no tensor
    if is_lazy(param):
        raise ValueError(
            f"{op}: `{name}` must have a shape, got one that is still lazy; run a batch through the model first"
        )
    if not steppable(param.dtype):
        raise TypeError(
            f"{op}: `{name}` must be float32, float64, bfloat16, float16 or complex to be trained, got {param.dtype}; "
            "freeze it by `requires_grad_(False)`, or convert it"
        )
    if is_traceable_wrapper_subclass(param):
        raise NotImplementedError(_no_memory(op, f"`{name}`", param))


def warn_if_plain(op: str, groups: Iterable[dict[str, Any]], plan: Iterable[PlanRow]) -> None:
    """Warns if a group asks for a rank but every parameter takes the plain path."""
    asked, rows = [group["rank"] for group in groups if group["rank"] is not None], list(plan)
    numbers = [rank for rank in asked if not isinstance(rank, str)]
    if asked and not any(row.projected for row in rows):
        reasons = ", ".join(sorted({row.reason for row in rows if row.reason})[:3])
        warnings.warn(
            f"{op}: nothing is projected at rank {min(numbers, default=FULL)} ({reasons}): "
            "this is plain AdamW and saves no memory; lower `rank`, or pass `rank=None` if that is meant",
            stacklevel=4,
        )


def check_lengths(op: str, group: dict[str, Any], place_of: Callable[[tuple[int, ...]], Geometry | None]) -> None:
    """Refuses a basis of `group` that does not exist for one of its matrices.

    Raises:
      ValueError: it is "hadamard", and the length of a transformed side is no power of two.
    """
    if group.get("basis") != "hadamard" or not isinstance(group["params"], list):
        return
    for entry in group["params"]:
        param = entry[1] if isinstance(entry, tuple) else entry
        if not isinstance(param, Tensor) or param.is_complex() or is_lazy(param):
            continue
        where = place_of(tuple(param.shape[1:] if group["stacked"] else param.shape))
        length = 0 if where is None else where.rows if where.side == Side.LEFT else where.cols
        if length & (length - 1):
            raise ValueError(
                f"{op}: `basis` must not be 'hadamard' for a weight {tuple(param.shape)}, whose transformed side "
                f"{length} is no power of two; use 'dct2', or leave it to a group without a rank"
            )


def check_device(bucket: Bucket) -> None:
    """Refuses settings with which the weights of `bucket` cannot be stepped on their device.

    Raises:
      NotImplementedError: a codec or a rounding that has no kernel there in this version.
    """
    if has_kernels(bucket.device):
        return
    stochastic = bucket.rounding == "stochastic" and bucket.dtype == torch.bfloat16
    for wrong, key, value in ((bucket.codec.host_only, "moment_dtype", "auto"), (stochastic, "rounding", "nearest")):
        if wrong:
            raise NotImplementedError(
                f"step: `{key}` must be {value!r} for weights on {bucket.device} in this version, got another one"
            )


def all_ordinary(slots: Iterable[Slot], grads: Iterable[Tensor]) -> bool:
    """True if `check_ready` would pass all of them and `Slot.gradient` would change none: one look at all of them.

    False says nothing, as for tensors of an accelerator: then each is to be looked at.
    """
    return are_ordinary([*(slot.param for slot in slots), *grads])


def check_ready(slot: Slot, grad: Tensor) -> None:
    """Refuses a weight or a gradient that a step could not read and write as ordinary memory.

    Raises:
      RuntimeError: the gradient is sparse, or the weight overlaps itself in memory.
      TypeError: the weight's dtype is one that no step computes in.
      NotImplementedError: one of them holds no memory of its own.
    """
    param = slot.param
    if isinstance(param, Int8Weight) and not has_kernels(param.device):
        raise NotImplementedError(
            f"step: `{slot.name}` must be on the CPU to be trained in 8 bits in this version, got {param.device}"
        )
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"step: the gradient of `{slot.name}` must be dense, got {grad.layout}; "
            "build its module without sparse gradients"
        )
    for tensor in (param, grad):
        if not _holds_memory(tensor):
            what = f"`{slot.name}`" if tensor is param else f"the gradient of `{slot.name}`"
            raise NotImplementedError(_no_memory("step", what, tensor))
    if not steppable(param.dtype):
        raise TypeError(
            f"step: `{slot.name}` must be float32, float64, bfloat16, float16 or complex, got {param.dtype}"
        )
    if param.is_neg() or param.is_conj():
        raise RuntimeError(
            f"step: `{slot.name}` must be no lazily negated or conjugated view; give it memory by clone()"
        )
    if not param.is_contiguous() and param.device.type == "cpu" and overlaps_itself(slot.weight):
        raise RuntimeError(
            f"step: `{slot.name}` {tuple(param.shape)} must not overlap itself in memory, got strides "
            f"{param.stride()}; clone it before it becomes a parameter"
        )


def _holds_memory(tensor: Tensor) -> bool:
    if type(tensor) in (torch.nn.Parameter, Tensor):
        return tensor.device.type != "meta" and (tensor.data_ptr() != 0 or tensor.numel() == 0)
    return not (is_traceable_wrapper_subclass(tensor) or _is_fake(tensor)) and tensor.device.type != "meta"


def _is_fake(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import is_fake  # imports much, and a subclass is rare

    return bool(is_fake(tensor))


def _no_memory(op: str, what: str, tensor: Tensor) -> str:
    kind = "a tensor on the meta device" if tensor.device.type == "meta" else f"a {type(tensor).__name__}"
    way = "load the weights first" if tensor.device.type == "meta" else "give the optimizer whole, local tensors"
    return f"{op}: {what} must hold memory of its own, got {kind}; {way}"
