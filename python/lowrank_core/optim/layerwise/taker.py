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
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.gathering import Drafts, Sorting
from lowrank_core.optim.layerwise.flag import Flag, at_the_end_of_backward
from lowrank_core.optim.layerwise.held import Held, way_of
from lowrank_core.optim.layerwise.norms import Clip, squared_norm, total
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.slots import Key, Slot
from lowrank_core.optim.states import state_of
from lowrank_core.optim.step import lower

Place = tuple[int, dict[str, Any], Slot]  # number of the group, group, slot
Places = dict[Tensor, list[Place]]  # of the weights of each parameter


class Taker:
    """The source of the gradients of `optimizer`: those of `model`, as backward finishes them."""

    def __init__(
        self, model: nn.Module, optimizer: LowRankOptimizer, clip: Clip | None, at_once: bool, compressed: bool
    ) -> None:
        self._model, self._optimizer, self._clip = model, optimizer, clip
        self.at_once = at_once  # every weight steps inside backward
        self.compressed = compressed  # gradients add up in sketches
        self.held: dict[Key, Held] = {}
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

    def params(self) -> set[Tensor]:
        """The parameters whose gradients are held."""
        return {param for param, _ in self.held}

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

    def drafts(self) -> dict[Key, Draft]:
        """Hands over what is held."""
        held = self.held
        self.held = {}
        self.drop()
        return {key: one.draft for key, one in held.items()}

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
            applied = seen.low if seen.low is not None and seen.lifts is None else seen.gradients()
            squares += [squared_norm(tensor) for tensor in applied]
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

    @torch.no_grad()
    def _arrived(self, param: Tensor) -> None:
        """Takes the gradient that backward has just finished."""
        with self._lock:
            if self._flag.wiped():
                self.drop()
            places = self._places()[0].get(param)
            if places is None or param.grad is None:  # no longer the optimizer's
                return
            self._take(places)
            at_the_end_of_backward(self._flag.show)

    def _take_what_is_left(self) -> None:
        for param, places in self._places()[0].items():
            if param.grad is not None:
                self._take(places)

    def _places(self) -> tuple[Places, Sorting]:
        if self._where is None:
            places: Places = {}
            for place in self._optimizer._slots():
                places.setdefault(place[2].param, []).append(place)
            self._where = places, self._optimizer._sorting()
        return self._where

    def _take(self, places: list[Place]) -> None:
        """Adds the gradient of the parameter with `places` to what is held, or steps with it at once."""
        first = places[0][2]
        grad = cast(Tensor, first.param.grad)
        check_ready(first, grad)
        first.param.grad = None
        grad = grad.detach().clone() if grad.requires_grad else grad
        ways: dict[Way, Drafts] = {}
        for number, group, slot in places:
            before = self.held.get(slot.key)
            bucket = before.bucket if before else self._optimizer._sorted(self._places()[1], number, group, slot)[0]
            way = way_of(bucket.parts, bucket.projected, bucket.due, self.at_once, self.compressed)
            ways.setdefault(way, {}).setdefault(bucket, Draft()).add(slot, slot.gradient(grad))
        if at_once := ways.pop(Way.AT_ONCE, None):
            self._step_at_once(first, at_once)
        for way, drafts in ways.items():
            for bucket, draft in drafts.items():
                if way is Way.WHOLE and len(ways) > 1:  # what holds a view of a stack holds all of it
                    draft.grads = [part.clone() for part in draft.grads]
                self._hold(bucket, draft, way)

    def _hold(self, bucket: Bucket, draft: Draft, way: Way) -> None:
        """Adds the gradients of weights that are held in one `way` to what is held of each."""
        states = self._optimizer._states(bucket, draft) if way is Way.SUBSPACE else []
        if way is Way.SUBSPACE:
            self._optimizer._draft(bucket, draft)
            if draft.low is None:
                lower(bucket, draft, states)
        for i, one in enumerate(draft.each()):
            held = Held(bucket, one)
            if way is Way.SKETCH:
                held.compress(self._count(held.slot), self.sketches)
            elif way is Way.SUBSPACE:
                if self.sketches:
                    held.measure(held.slot.where(states[i]), self._count(held.slot))
                one.free_()
            self._flag.note(_finite(one))
            if (before := self.held.get(held.slot.key)) is None:
                self.held[held.slot.key] = held
            else:
                before.add_(held)

    def _step_at_once(self, slot: Slot, drafts: Drafts) -> None:
        for bucket in drafts:
            self._check_at_once(bucket, slot)
        self._optimizer._apply(drafts)
        self.stepped.add(slot.param)

    def _check_at_once(self, bucket: Bucket, slot: Slot) -> None:
        if slot.param in self.stepped:
            sketches = not self.at_once and bucket.parts.residual.takes_sketches
            way_out = ", or pass `compressed=True` to it" if sketches else ""
            why = "at_once=True" if self.at_once else "its method reads the whole gradient"
            raise RuntimeError(
                f"backward: `{slot.param_name}` must get one gradient per step, because {why} and it has stepped with "
                "the first one, got another; use a larger batch, or accumulate without "
                f"{'at_once' if self.at_once else 'fused_backward'}{way_out}"
            )
        if bucket.nonfinite != "raise":
            raise RuntimeError(no_skip("backward"))

    def _count(self, slot: Slot) -> int:
        """How many steps are finished, or an upper bound where an accelerator counts."""
        bound, state = self._optimizer._bounds.get(slot.key), state_of(self._optimizer.state, slot)
        return bound if bound is not None else int(state["step"]) if state else 0

    def _clip_whole(self) -> None:
        states = self._optimizer.state
        in_order = sorted(self.held.values(), key=lambda held: held.slot.index)  # backward's own is no part of a result
        found = [held.squared_norm(state_of(states, held.slot)) for held in in_order]
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

    @_disable_dynamo  # else it is compiled anew for each kind of parameter
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
