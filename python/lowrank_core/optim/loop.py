"""The one optimizer loop of the package."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from lowrank_core.optim import devices
from lowrank_core.optim.bucket import Bucket, batches
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.fused import fused
from lowrank_core.optim.gathering import Drafts, GatheringOptimizer
from lowrank_core.optim.parts.projectors import Found
from lowrank_core.optim.refresh import adopt, find
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.states import keep_state, open_state, state_of
from lowrank_core.optim.step import compose

_REFRESHED_TOGETHER = 16  # matrices whose old and new subspaces are held at the same time


class LowRankOptimizer(GatheringOptimizer):
    """The one `step()` that every optimizer of the package is; a subclass names its parts.

    One step, for each parameter W with a gradient G:
      refresh the basis if its schedule says so;  R = down(G);  N = rule(R);
      W <- (1 - lr weight_decay) W - lr up(N)

    Before anything is touched the gradients of the whole step are tested for inf and nan. They stay as they are. The
    groups hold every hyperparameter, and each step makes the parts again if one of them has changed: schedulers,
    checkpoints and edits of a group act at once. `parts` must not read `lr` and `weight_decay`, which are the loop's.

    Determinism: D1 (same bits for any number of threads), given such kernels. Draws from no global generator.

    Example:
      >>> import dataclasses, torch
      >>> from lowrank_core.optim import GaLoreAdamW
      >>> from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
      >>> class EveryStep(GaLoreAdamW):  # a LowRankOptimizer that looks for its bases at every step
      ...     @classmethod
      ...     def parts(cls, group, weight):
      ...         return dataclasses.replace(super().parts(group, weight), schedule=FixedGap(1))
      >>> optimizer = EveryStep([torch.zeros(64, 32)], rank=8)
      >>> optimizer.parts(optimizer.param_groups[0], torch.zeros(1)).schedule
      FixedGap(gap=1, stagger='auto')
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with every parameter that has a gradient, or none at all if a gradient is not finite.

        Args:
          closure: evaluates the model again and returns the loss.

        Returns:
          What `closure` returned, or None.

        Raises:
          RuntimeError: a gradient is sparse; a gradient is not finite and its group says `nonfinite="raise"`;
            an exact SVD does not converge. Nothing is changed then.
          ValueError: a group's `rank` or `proj_type` is no longer what its state was made with.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take()
        return loss

    # A torch.compile around the whole training step leaves this part as it is. The decorator is the one that
    # torch's Optimizer uses: torch.compiler.disable would import the compiler with this module, for seconds.
    @_disable_dynamo
    def _take(self) -> None:
        """One step with the gradients as they are."""
        if self._source is None or self._source.ready():
            self._apply(self._gather())
        else:
            self._skipped = self._skipped + 1

    def _apply(self, drafts: Drafts) -> None:
        """One step with the gradients of `drafts`."""
        due = [bucket for bucket in drafts if bucket.due]
        for bucket, draft in drafts.items():
            if not bucket.due:
                self._draft(bucket, draft)
        go, gate = self._judge(drafts)
        if gate is not None and due:
            # The searches wait for the verdict; other buckets are enqueued before, unless a search may fail.
            late = self._source is not None and self._source.clips_late
            early = {} if late or any(bucket.parts.projector.may_fail for bucket in due) else dict(drafts)
            for bucket in [bucket for bucket in early if not bucket.due]:
                self._step(bucket, drafts.pop(bucket), gate)
            go, gate = bool(gate), None
        if go:
            self._refresh({bucket: drafts[bucket] for bucket in due})
            if self._source is not None and self._source.clips_late:
                self._source.clip(drafts)
            for bucket, draft in drafts.items():
                self._step(bucket, draft, gate)

    def _draft(self, bucket: Bucket, draft: Draft) -> None:
        """Lets the kernel of `bucket`, if there is one, read what it needs before anything is changed."""
        states = [state_of(self.state, slot) for slot in draft.slots]
        if draft.low is None and (kernel := fused(bucket)) and all(states):
            kernel.draft(bucket, draft, states)

    def _judge(self, drafts: Drafts) -> tuple[bool, Tensor | None]:
        """Whether to go on, and the gate that decides it if the host does not know.

        A low-rank gradient is finite only if all of the gradient is, so gradients that were drafted are not read again.
        If all gradients are on one accelerator, the host does not wait for it, unless a group with nonfinite="raise"
        needs the verdict: the answer is then to go on behind a 0-d bool that stays there.
        """
        grads = [grad for draft in drafts.values() for grad in draft.evidence]
        places = {grad.device for grad in grads}
        raising = any(bucket.nonfinite == "raise" for bucket in drafts)
        if len(places) == 1 and devices.deferred(grads[0].device):
            gate = devices.all_finite(grads)
            if not raising:
                self._skipped = self._skipped + (~gate).long()
                return True, gate
            if gate:
                return True, None
        judged = [(bucket, draft) for bucket, draft in drafts.items() if not draft.finite]
        owners = [(bucket, slot) for bucket, draft in judged for slot in draft.slots]
        wrong = devices.nonfinite([grad for _, draft in judged for grad in draft.evidence]) if owners else []
        for bucket, slot in (owners[i] for i in wrong):
            if bucket.nonfinite == "raise":
                raise RuntimeError(
                    f"step: the gradient of `{slot.name}` {slot.shape} must be finite, "
                    'got inf or nan; nothing was changed, lower the loss scale or pass `nonfinite="skip"`'
                )
        self._skipped = self._skipped + bool(wrong)
        return not wrong, None

    def _refresh(self, due: Drafts) -> None:
        """Finds the subspaces that are due. Searches that may fail all run before anything is changed."""
        found: dict[Slot, Found | None] = {}
        for bucket, draft in due.items():
            if bucket.parts.projector.may_fail:  # one by one: an error then names the parameter
                for slot, grad in zip(draft.slots, draft.gradients(), strict=True):
                    state, started = state_of(self.state, slot) or self._opened(bucket, slot), perf_counter()
                    found[slot] = find(bucket, [slot], [grad], [state])[0]
                    self._tell([slot], perf_counter() - started)
        for bucket, draft in due.items():
            for some in batches(_REFRESHED_TOGETHER if draft.lifts is None else 1, len(draft.slots)):
                started, slots, grads = perf_counter(), draft.slots[some], list(draft.gradients(some))
                states = [self._state(bucket, slot) for slot in slots]
                if not bucket.parts.projector.may_fail:
                    found |= zip(slots, find(bucket, slots, grads, states), strict=True)
                for slot, grad, state in zip(slots, grads, states, strict=True):
                    adopt(bucket, slot, grad, state, found.pop(slot))
                self._tell(slots, perf_counter() - started)

    def _tell(self, slots: list[Slot], seconds: float) -> None:
        for watch in self.watches:
            watch.searched(slots, seconds)

    def _step(self, bucket: Bucket, draft: Draft, gate: Tensor | None) -> None:
        if self._bounds:
            for slot in draft.slots:
                if slot.key in self._bounds:
                    self._bounds[slot.key] += 1
        kernel, states = fused(bucket), self._states(bucket, draft)
        if kernel is None or draft.lifts is not None:  # sketches: one whole gradient is there at a time
            compose(bucket, draft, states, gate)
            return
        # A gradient of zeros names no subspace, and a weight without one only decays.
        free = not bucket.projected or bucket.parts.projector.each_step
        named = [free or state["proj.refreshes"] != 0 for state in states]
        if not all(named):
            draft, waiting = draft.part(named)
            compose(bucket, waiting, self._states(bucket, waiting), gate)
            states = self._states(bucket, draft)
        if draft.slots:
            if draft.low is None:
                kernel.draft(bucket, draft, states)
            kernel.finish(bucket, draft, states, gate)

    def _states(self, bucket: Bucket, draft: Draft) -> list[State]:
        return [self._state(bucket, slot) for slot in draft.slots]

    def _state(self, bucket: Bucket, slot: Slot) -> State:
        state = state_of(self.state, slot)
        if not state:
            state = self._opened(bucket, slot)
            keep_state(self.state, slot, state)
            if devices.deferred(bucket.device):
                self._bounds[slot.key] = 0
        return state

    def _opened(self, bucket: Bucket, slot: Slot) -> State:
        layout = bucket.parts.layout(slot.geometry, tuple(slot.weight.shape), name_of(slot.weight.dtype))
        return open_state(layout, slot.param.device)
