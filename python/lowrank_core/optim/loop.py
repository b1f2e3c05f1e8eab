"""The one optimizer loop of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from lowrank_core.optim import guard
from lowrank_core.optim.admission import check_device, check_ready
from lowrank_core.optim.base import StateOptimizer
from lowrank_core.optim.checkpoint import check_geometry
from lowrank_core.optim.codecs import State
from lowrank_core.optim.compose import adopt, compose, find, open_state
from lowrank_core.optim.fused import Draft, fused
from lowrank_core.optim.options import check_rates
from lowrank_core.optim.parts import Bucket, Slot, batches
from lowrank_core.optim.projectors import Bases

_REFRESHED_TOGETHER = 16  # matrices whose old and new bases are held at the same time


class LowRankOptimizer(StateOptimizer):
    """The one `step()` that every optimizer of the package is; a subclass names its parts.

    One step, for each parameter W with a gradient G:
      refresh the basis if its schedule says so;  R = down(G);  N = rule(R);
      W <- (1 - lr weight_decay) W - lr up(N)

    Before anything is touched the gradients of the whole step are tested for inf and nan. They stay as they
    are. The groups hold every hyperparameter, and the parts are made from them anew at each step: schedulers,
    checkpoints and edits of a group act at once.

    Determinism: D1 (same bits for any number of threads), given such kernels. Draws from no global generator.

    Example:
      >>> import dataclasses, torch
      >>> from lowrank_core.optim import GaLoreAdamW, schedules
      >>> class EveryStep(GaLoreAdamW):  # a LowRankOptimizer that looks for its bases at every step
      ...     @classmethod
      ...     def parts(cls, group, weight):
      ...         return dataclasses.replace(super().parts(group, weight), schedule=schedules.FixedGap(1))
      >>> optimizer = EveryStep([torch.zeros(64, 32)], rank=8)
      >>> optimizer.parts(optimizer.param_groups[0], torch.zeros(1)).schedule
      FixedGap(gap=1)
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with every parameter that has a gradient; with none if one is not finite.

        Args:
          closure: evaluates the model anew and returns the loss.

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
        buckets = self._gather()
        due = [(bucket, slot) for bucket in buckets for slot in bucket.slots if self._due(bucket, slot)]
        drafts = {} if due else {bucket: draft for bucket in buckets if (draft := self._draft(bucket))}
        go, gate = self._judge(buckets, drafts, wait=bool(due))
        if go:
            self._refresh(due)
            for bucket in buckets:
                self._step(bucket, drafts.get(bucket), gate)

    def _draft(self, bucket: Bucket) -> Draft | None:
        """What the kernel of `bucket`, if there is one, reads before anything is changed."""
        kernel, states = fused(bucket), [self.state.get(slot.param) or {} for slot in bucket.slots]
        return kernel.draft(bucket, states) if kernel else None

    def _step(self, bucket: Bucket, draft: Draft | None, gate: Tensor | None) -> None:
        states = [self._state(bucket, slot) for slot in bucket.slots]
        if kernel := fused(bucket):
            kernel.finish(bucket, draft or kernel.draft(bucket, states), states)
        else:
            compose(bucket, states, gate)
        for slot in bucket.slots:
            if slot.param in self._bounds:
                self._bounds[slot.param] += 1

    def _state(self, bucket: Bucket, slot: Slot) -> State:
        if not self.state.get(slot.param):
            self.state[slot.param] = open_state(slot, bucket.parts)
        state: State = self.state[slot.param]
        return state

    def _gather(self) -> list[Bucket]:
        """The parameters that have a gradient, by group, path, device and dtype."""
        buckets: dict[tuple[Any, ...], Bucket] = {}
        for number, group, slot in self._slots():
            param, weight, projected = slot.param, slot.weight, slot.geometry is not None
            if param.grad is None:
                continue
            check_ready(slot)
            check_geometry("step", slot, self.state.get(param) or {})
            key = (number, projected, weight.device, weight.dtype)
            if key not in buckets:
                check_rates(type(self).__name__, group)
                buckets[key] = Bucket.of(group, self._parts(group, weight), projected)
                check_device(buckets[key], weight)
            buckets[key].slots.append(slot)
        return list(buckets.values())

    def _judge(self, buckets: list[Bucket], drafts: dict[Bucket, Draft], wait: bool) -> tuple[bool, Tensor | None]:
        """Whether to go on, and the gate that decides it where the host does not know.

        A low-rank gradient is finite only if all of the gradient is, so what was drafted is not read again. Where
        all gradients are on one accelerator it is not waited for, unless `wait` or a group that raises ask for it:
        the answer is then to go on behind a 0-d bool that stays there.
        """
        entries = [(bucket, slot) for bucket in buckets for slot in bucket.slots]
        grads = [slot.grad for _, slot in entries]
        devices = {grad.device for grad in grads}
        wait = wait or any(bucket.nonfinite == "raise" for bucket in buckets)
        if len(devices) == 1 and guard.deferred(grads[0].device):
            gate = guard.all_finite(grads)
            if not wait:
                self._skipped = self._skipped + (~gate).long()
                return True, gate
            if gate:
                return True, None
        known = {slot for draft in drafts.values() if draft.finite for slot in draft.slots}
        bad = [entry for entry in entries if entry[1] not in known and not guard.is_finite(entry[1].grad)]
        for bucket, slot in bad:
            if bucket.nonfinite == "raise":
                raise RuntimeError(
                    f"step: the gradient of `{slot.name}` {tuple(slot.param.shape)} must be finite, "
                    'got inf or nan; nothing was changed, lower the loss scale or pass `nonfinite="skip"`'
                )
        self._skipped = self._skipped + bool(bad)
        return not bad, None

    def _due(self, bucket: Bucket, slot: Slot) -> bool:
        """True if the basis of `slot` is to be looked for before this step."""
        if slot.geometry is None:
            return False
        state, schedule = self.state.get(slot.param) or {}, bucket.parts.schedule
        if "proj.rank" not in state:
            return True
        bound = self._bounds.get(slot.param)
        if bound is not None and not schedule.due(bound, state):
            return False
        steps = int(state["step"])  # waits for an accelerator, where a refresh seems due
        if guard.deferred(slot.param.device):
            self._bounds[slot.param] = steps
        return schedule.due(steps, state)

    def _refresh(self, due: list[tuple[Bucket, Slot]]) -> None:
        """Finds the bases that are due; those that may not exist all before anything is changed."""
        found: dict[Slot, Bases] = {}
        for bucket, slot in due:
            if bucket.parts.projector.may_fail:  # one by one: an error then names the parameter
                found[slot] = find([slot], [self.state.get(slot.param) or {}], bucket.parts, bucket.seed)[0]
        for bucket, batch in batches(due, _REFRESHED_TOGETHER):
            states = [self._state(bucket, slot) for slot in batch]
            if not bucket.parts.projector.may_fail:
                found |= zip(batch, find(batch, states, bucket.parts, bucket.seed), strict=True)
            for slot, state in zip(batch, states, strict=True):
                bases = found.pop(slot)
                if bases:
                    adopt(bucket, slot, state, bases)
