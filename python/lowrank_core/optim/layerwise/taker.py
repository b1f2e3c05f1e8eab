"""Takes gradients out of backward, holds what is needed of them, and hands it over to a step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.hooks import RemovableHandle

from lowrank_core.memory.gradients import Way
from lowrank_core.optim import devices
from lowrank_core.optim.admission import check_ready
from lowrank_core.optim.gathering import Drafts, Sorting
from lowrank_core.optim.layerwise.flag import Flag, at_the_end_of_backward
from lowrank_core.optim.layerwise.held import Held, way_of
from lowrank_core.optim.layerwise.norms import Clip, squared_norm, total
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.slots import Draft, Slot
from lowrank_core.optim.step import lower

Places = dict[Tensor, tuple[int, dict[str, Any], Slot]]  # by parameter: number of the group, group, slot


class Taker:
    """The source of the gradients of `optimizer`: those of `model`, as backward finishes them."""

    def __init__(self, model: nn.Module, optimizer: LowRankOptimizer, clip: Clip | None, at_once: bool) -> None:
        self._model, self._optimizer, self._clip = model, optimizer, clip
        self.at_once = at_once  # every weight steps inside backward
        self.held: dict[Tensor, Held] = {}
        self.stepped: set[Tensor] = set()  # inside backward, since the last step()
        self._where: tuple[Places, Sorting] | None = None  # as it is from the first gradient to the step
        self._lock = threading.Lock()  # backward runs one thread for each accelerator
        self.hooks: dict[Tensor, RemovableHandle] = {}
        self._attach()
        self._flag = Flag(self.hooks)
        optimizer._source = self
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Takes all hooks away and forgets what is held."""
        self.drop()
        self._flag.remove()
        for hook in self.hooks.values():
            hook.remove()
        self.hooks = {}
        self._optimizer._source = None
        del self._optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]

    @property
    def sketches(self) -> bool:
        """True if the norm of what the subspaces drop is to be known."""
        return self._clip is not None and self._clip.whole

    def holds(self) -> bool:
        """True if gradients are held that nobody has zeroed."""
        return bool(self.held) and not self._flag.wiped()

    # ---- what the loop asks for: see `Source`

    def ready(self) -> bool:
        """Unscales what is held, and clips it by the norm of the whole gradients."""
        optimizer = self._optimizer
        if self._flag.wiped():
            self.drop()
        scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if found is not None and self.stepped:
            raise RuntimeError(
                "step: a GradScaler must not be used with a method that steps inside backward, got one; the weights "
                "were stepped with scaled gradients; train in bfloat16 without one, or without fused_backward"
            )
        value = self._flag.hide()
        if found is not None and float(found) > 0:
            self.drop()
            return False
        if value is not None:
            self._scale(torch.where(value.isfinite(), value, 1.0).double())
        self._take_what_is_left()
        if scale is not None:
            self._scale(1.0 / scale.double())
        if self.sketches:
            self._clip_whole()
        self._attach()
        return True

    def drafts(self) -> dict[Tensor, Draft]:
        """Hands over what is held."""
        held = self.held
        self.held = {}
        self.drop()
        return {param: one.draft for param, one in held.items()}

    @property
    def clips_late(self) -> bool:
        """True if it clips by what is applied, which is known once the subspaces are."""
        return self._clip is not None and not self._clip.whole

    def clip(self, drafts: Drafts) -> None:
        """Clips by the norm of what is applied."""
        squares = []
        for bucket, draft in drafts.items():
            seen = draft
            whole = bucket.parts.projector.each_step or bucket.parts.residual.feeds_back
            if bucket.projected and not whole and draft.low is None:
                self._optimizer._draft(bucket, draft)
                if draft.low is None:
                    seen = Draft(draft.slots, draft.grads)
                    lower(bucket, seen, self._optimizer._states(bucket, draft))
            squares += [squared_norm(tensor) for tensor in (seen.grads if seen.low is None else seen.low)]
        factor = cast(Clip, self._clip).factor(total(squares).sqrt())
        if _acts(factor):
            for draft in drafts.values():
                draft.scale_(factor)

    def drop(self) -> None:
        """Forgets what is held."""
        self.held, self._where = {}, None
        self.stepped.clear()
        self._flag.reset()

    # ---- inside backward

    def _attach(self) -> None:
        """Hooks the parameters of the model that train; those that came or were unfrozen since, too."""
        of_model = set(self._model.parameters())
        for _, _, slot in self._optimizer._slots():
            param = slot.param
            if param.requires_grad and param in of_model and param not in self.hooks:
                hook = _taking(weakref.ref(self))
                self.hooks[param] = param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @_disable_dynamo
    @torch.no_grad()
    def _arrived(self, param: Tensor) -> None:
        """Takes the gradient that backward has just finished."""
        with self._lock:
            if self._flag.wiped():
                self.drop()
            place = self._places()[0].get(param)
            if place is None or param.grad is None:  # no longer the optimizer's
                return
            self._take(*place)
            at_the_end_of_backward(self._flag.show)

    def _take_what_is_left(self) -> None:
        for number, group, slot in self._places()[0].values():
            if slot.param.grad is not None:
                self._take(number, group, slot)

    def _places(self) -> tuple[Places, Sorting]:
        if self._where is None:
            self._where = {place[2].param: place for place in self._optimizer._slots()}, self._optimizer._sorting()
        return self._where

    def _take(self, number: int, group: dict[str, Any], slot: Slot) -> None:
        """Adds the gradient of `slot` to what is held of it, or steps with it at once."""
        optimizer, param = self._optimizer, slot.param
        grad = cast(Tensor, param.grad)
        check_ready(slot, grad)
        param.grad = None
        grad = slot.gradient(grad.detach().clone() if grad.requires_grad else grad)
        draft = Draft([slot], [grad])
        before = self.held.get(param)
        bucket = before.bucket if before else optimizer._sorted(self._places()[1], number, group, slot)[0]
        way = way_of(bucket.parts, bucket.projected, bucket.due, self.at_once)
        if way is Way.AT_ONCE:
            self._check_at_once(slot, bucket.nonfinite)
            optimizer._apply({bucket: draft})
            self.stepped.add(param)
            return
        held = Held(bucket, draft)
        if way is Way.SUBSPACE:
            state = optimizer._state(bucket, slot)
            optimizer._draft(bucket, draft)
            if draft.low is None:
                lower(bucket, draft, [state])
            if self.sketches:
                held.measure(slot.where(state), self._count(slot))
            draft.free_()
        self._flag.note(_finite(draft))
        if before is None:
            self.held[param] = held
        else:
            before.add_(held)

    def _check_at_once(self, slot: Slot, nonfinite: str) -> None:
        if slot.param in self.stepped:
            why = "at_once=True" if self.at_once else "its method reads the whole gradient"
            raise RuntimeError(
                f"backward: `{slot.name}` must get one gradient per step, because {why} and it has stepped with the "
                "first one, got another; use a larger batch, or accumulate without "
                f"{'at_once' if self.at_once else 'fused_backward'}"
            )
        if nonfinite != "raise":
            raise RuntimeError(no_skip("backward"))

    def _count(self, slot: Slot) -> int:
        """How many steps are finished, or an upper bound where an accelerator counts."""
        bound = self._optimizer._bounds.get(slot.param)
        return int(self._optimizer.state[slot.param]["step"]) if bound is None else bound

    def _clip_whole(self) -> None:
        found = [held.squared_norm(self._optimizer.state.get(held.slot.param, {})) for held in self.held.values()]
        variances = [variance for _, variance in found if variance is not None]
        norm = total(square for square, _ in found).sqrt()
        self._scale(cast(Clip, self._clip).factor(norm, total(variances) if variances else None))

    def _scale(self, factor: Tensor) -> None:
        if _acts(factor):
            for held in self.held.values():
                held.scale_(factor)


def no_skip(op: str) -> str:
    return (
        f'{op}: `nonfinite` must be "raise" for weights that are stepped inside backward, got "skip"; no whole step is '
        "left to skip once a gradient is not finite"
    )


def _acts(factor: Tensor) -> bool:
    """False for a factor of 1, if the host knows it."""
    return devices.deferred(factor.device) or float(factor) != 1


def _finite(draft: Draft) -> bool | Tensor:
    """Whether the gradient of one weight is finite: a bool, or a 0-d one that stays on an accelerator."""
    (evidence,) = draft.evidence
    if draft.finite:
        return True
    if devices.deferred(evidence.device):
        return devices.all_finite([evidence])
    return not devices.nonfinite([evidence])


def _taking(taker: weakref.ref[Taker]) -> Callable[[Tensor], None]:
    """A hook that does nothing once the taker is gone, with its optimizer."""

    def taking(param: Tensor) -> None:
        if (alive := taker()) is not None:
            alive._arrived(param)

    taking.of_taker = taker  # type: ignore[attr-defined]
    taking.__torch_unserializable__ = True  # type: ignore[attr-defined]
    return taking


def is_taken(param: Tensor) -> bool:
    """True if a taker has the gradient of `param`."""
    hooks = getattr(param, "_post_accumulate_grad_hooks", None) or {}
    return any((taker := getattr(hook, "of_taker", None)) is not None and taker() for hook in hooks.values())
