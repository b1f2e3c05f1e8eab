"""Layer-wise updates: gradients are taken and let go of while backward runs."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lowrank_core.checks import is_number, require, require_choice
from lowrank_core.memory.gradients import GradientBytes, Way
from lowrank_core.optim.layerwise.held import planned, way_of
from lowrank_core.optim.layerwise.norms import Clip
from lowrank_core.optim.layerwise.taker import Taker, is_taken, no_skip
from lowrank_core.optim.lisa import LISA
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.slots import Slot

OP = "fused_backward"
CLIPS = ("whole", "projected")


def fused_backward(
    model: nn.Module,
    optimizer: LowRankOptimizer | LISA,
    *,
    max_norm: float | None = None,
    clip: str = "whole",
    at_once: bool = False,
    compressed: bool = False,
) -> FusedBackward:
    """Takes each gradient of `model` while backward runs and lets go of it; the training loop stays as it is.

    After k times `loss.backward()`, `optimizer.step()` takes the step that the sum of the gradients asks for: the same
    as without this, to rounding. Between two searches for a subspace only the gradient in the subspace is held. Held
    whole until `step()` are the gradients of weights that are not projected, that look for their subspace in this step,
    and of methods whose selection or feedback needs them. The table in docs/guides/layerwise.md says it by method.

    A method whose step reads the gradient itself (Fira, APOLLO, FRUGAL, Flora) steps inside backward, and with
    `at_once` every weight of any method does. That takes one backward per step, no `max_norm`, and groups with
    `nonfinite="raise"`.

    With `compressed` Flora accumulates as its paper does: C = P^T (sum of gradients), with a P that is drawn for each
    step, and the step is Flora's with P C for the gradient. Exact to rounding: C, so that k backward passes are one
    with the whole batch. An estimate, also with one backward: P C, which is the gradient in the mean over P, and off by
    sqrt((m + 1) / r) of its length in the root mean square, m the side that is projected.

    After backward `.grad` is None, but for one parameter: it has a sparse gradient of one element there, by which a
    `GradScaler` works as usual. `torch.nn.utils.clip_grad_norm_` refuses it: pass `max_norm` instead. What `.grad`
    holds at `step()` all the same, such as that of parameters outside of `model`, is taken then. `step()` uses up what
    is held, and zeroing the gradients, of the optimizer or of the whole model, forgets it.

    Args:
      model: whose gradients are taken; parameters that the optimizer does not have keep theirs.
      optimizer: of this package, with parameters of `model`, or a `LISA` over such a one. It keeps the handle.
      max_norm: > 0, unit of the gradients: they are scaled down to this norm of all of them together, as by
        `clip_grad_norm_`; inf only measures. None: neither.
      clip: which norm: "whole", that of the gradients, or "projected", that of what is applied: the low-rank gradients,
        and the others as they are. "whole" is exact for one backward per step. For more, what the subspaces drop is
        estimated from sketches of 16 columns, or from the r lines of C (`handle.norm_error`). "projected" is always
        exact; with `compressed` it is the norm of P C.
      at_once: True: each weight steps as soon as its gradient is there, searches and what is not projected too. No
        gradient is held until `step()`, in no step.
      compressed: True: gradients of matrices that `FloraAdamW` projects add up in sketches; not beside `at_once`.

    Returns:
      A handle: `remove()`, `last_norm`, `norm_error`, `plan()`.

    Raises:
      TypeError: not a module, or not an optimizer of this package.
      ValueError: a value out of its range; no parameter in common; `max_norm` or `nonfinite="skip"` where weights are
        stepped inside backward; `compressed` where there are no sketches; gradients that are taken already.
      NotImplementedError: gradients are to be averaged over processes.

    Determinism: that of the optimizer; norms and sketches are D1 (same bits for any number of threads;
      docs/numerics.md) on the CPU. With one backward per step and no `max_norm`, the bits of ordinary training.
    Source: the hooks are those of per-layer updates in Zhao et al. 2024 (GaLore, arXiv:2403.03507, section 4.3), which
      take one optimizer step per backward; accumulation, clipping and loss scaling are ours. `compressed`: Hao, Cao,
      Mou 2024 (Flora, arXiv:2402.03293), algorithm 1 before algorithm 2. Deviation: P is keyed by seed, place and step,
      not by a chain of seeds.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW, fused_backward
      >>> model = torch.nn.Linear(64, 32)
      >>> optimizer = GaLoreAdamW(model.parameters(), lr=0.01, rank=8)
      >>> handle = fused_backward(model, optimizer, max_norm=1.0)
      >>> for step in range(2):
      ...     for micro_batch in range(4):
      ...         (model(torch.randn(8, 64)).square().mean() / 4).backward()
      ...     optimizer.step()
      >>> handle.last_norm is not None and handle.norm_error is not None
      True
    """
    optimizer = _check_arguments(model, optimizer, max_norm, clip, at_once)
    _check_places(model, optimizer, max_norm, at_once, compressed)
    measured = None if max_norm is None else Clip(max_norm, clip == "whole")
    return FusedBackward(model, optimizer, measured, at_once, compressed)


class FusedBackward:
    """The handle of `fused_backward`.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW, fused_backward
      >>> model = torch.nn.Linear(64, 32)
      >>> optimizer = GaLoreAdamW(model.parameters(), rank=8)
      >>> handle = fused_backward(model, optimizer)
      >>> handle.plan()  # the low-rank gradient is [8, 64], the bias [32]
      GradientBytes(ordinary=8320, held=2176, due=8320, passing=8192)
      >>> handle.remove()
    """

    def __init__(
        self, model: nn.Module, optimizer: LowRankOptimizer, clip: Clip | None, at_once: bool, compressed: bool
    ) -> None:
        self._optimizer, self._clip = optimizer, clip
        self._taker = Taker(model, optimizer, clip, at_once, compressed)
        self._hooks = [
            optimizer.register_state_dict_pre_hook(_of_states(self._taker, _saving)),
            optimizer.register_load_state_dict_pre_hook(_of_states(self._taker, _loading)),
        ]

    @property
    def last_norm(self) -> float | None:
        """The norm that `max_norm` was compared with in the last step; None without one. Waits for an accelerator."""
        return None if self._clip is None or self._clip.norm is None else float(self._clip.norm)

    @property
    def norm_error(self) -> float | None:
        """The standard error of `last_norm`, as a share of it; 0 where it is exact. Waits for an accelerator."""
        return None if self._clip is None or self._clip.error is None else float(self._clip.error)

    def plan(self) -> GradientBytes:
        """The bytes of gradients, in ordinary training and with this handle."""
        places = [(slot, parts) for _, slot, parts in _places(self._optimizer) if slot.param in self._taker.hooks]
        return planned(places, self._taker.sketches, self._taker.at_once, self._taker.compressed)

    def remove(self) -> None:
        """Goes back to ordinary training.

        Warns:
          UserWarning: gradients are held that no `step()` has taken; they are dropped.
        """
        if self._optimizer._source is not self._taker:
            return
        if self._taker.holds():
            count = len(self._taker.params())
            warnings.warn(
                f"handle.remove: the gradients of {count} parameters are dropped; call step() before", stacklevel=2
            )
        self._taker.remove()
        for hook in self._hooks:
            hook.remove()


def _check_arguments(
    model: nn.Module, optimizer: LowRankOptimizer | LISA, max_norm: float | None, clip: str, at_once: bool
) -> LowRankOptimizer:
    """The optimizer that steps: within a `LISA` the one that it stands in front of."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{OP}: `model` must be a torch.nn.Module, got {type(model).__name__}")
    stepping = optimizer.optimizer if isinstance(optimizer, LISA) else optimizer
    if not isinstance(stepping, LowRankOptimizer):
        got = type(stepping).__name__ + (" in a LISA" if isinstance(optimizer, LISA) else "")
        raise TypeError(f"{OP}: `optimizer` must be one of lowrank_core that steps by gradients alone, got {got}")
    met = max_norm is None or ((max_norm == math.inf or is_number(max_norm)) and max_norm > 0)
    require(met, OP, "max_norm", "be a number > 0, or None", max_norm)
    require_choice(OP, "clip", clip, CLIPS)
    require(clip == "whole" or max_norm is not None, OP, "max_norm", f"be a number with clip={clip!r}", max_norm)
    require(isinstance(at_once, bool), OP, "at_once", "be True or False", at_once)
    if stepping._source is not None:
        raise ValueError(f"{OP}: `optimizer` must have no handle yet, got one; call its remove() first")
    _check_processes(model)
    return stepping


def _check_places(
    model: nn.Module, optimizer: LowRankOptimizer, max_norm: float | None, at_once: bool, compressed: bool
) -> None:
    require(isinstance(compressed, bool), OP, "compressed", "be True or False", compressed)
    params = set(model.parameters())
    shared = [entry for entry in _places(optimizer) if entry[1].param in params]
    if not shared:
        raise ValueError(f"{OP}: `optimizer` must have parameters of `model`, got none of them")
    ways = set()
    for group, slot, parts in shared:
        if is_taken(slot.param):
            raise ValueError(f"{OP}: `{slot.name}` must have no handle yet, got that of another optimizer")
        ways.add(way := way_of(parts, slot.geometry is not None, False, at_once, compressed))
        if way is Way.AT_ONCE:
            if max_norm is not None:
                who = "with at_once=True" if at_once else f"for {type(optimizer).__name__}"
                raise ValueError(
                    f"{OP}: `max_norm` must be None {who}, which steps inside backward before all gradients are "
                    f"known, got {max_norm}; clip without {'at_once' if at_once else OP}"
                )
            if group["nonfinite"] != "raise":
                raise ValueError(no_skip(OP))
    if compressed and Way.SKETCH not in ways:
        who = "beside at_once=True" if at_once else f"for this {type(optimizer).__name__}"
        raise ValueError(
            f"{OP}: `compressed` must be False {who}, got True; only matrices that FloraAdamW projects have sketches"
        )


def _check_processes(model: nn.Module) -> None:
    parallel = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if parallel or (several and torch.distributed.get_world_size() > 1):
        raise NotImplementedError(
            f"{OP}: `model` must be trained by one process in this version, got one whose gradients are averaged over "
            "several; they would be taken before that"
        )


def _places(optimizer: LowRankOptimizer) -> Iterator[tuple[dict[str, Any], Slot, Parts]]:
    for _, group, slot in optimizer._slots():
        yield group, slot, optimizer._parts_of(group, slot)


def _saving(taker: Taker) -> None:
    if taker.stepped:
        raise RuntimeError(
            "state_dict: must be taken after step(), because some weights were stepped inside backward and the "
            f"others were not, got {len(taker.stepped)} stepped ones; call step() first"
        )
    if taker.holds():
        warnings.warn(
            f"state_dict: the gradients of {len(taker.params())} parameters that fused_backward holds are not in it, "
            "as `.grad` never is; a run that resumes here repeats the backward passes since the last step()",
            stacklevel=4,
        )


def _loading(taker: Taker) -> None:
    if taker.holds() or taker.stepped:
        raise RuntimeError(
            "load_state_dict: must be called while fused_backward holds no gradients, got those of "
            f"{len(taker.params()) + len(taker.stepped)} parameters; call step() or zero_grad() first"
        )


def _of_states(taker: Taker, call: Callable[[Taker], None]) -> Callable[..., None]:
    """A hook of the optimizer that does nothing once the taker is gone."""
    ref = weakref.ref(taker)

    def hook(*_: object) -> None:
        if (alive := ref()) is not None:
            call(alive)

    return hook
