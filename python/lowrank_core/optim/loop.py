"""The one optimizer loop of the package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from lowrank_core.optim import guard
from lowrank_core.optim.admission import admit, check_device, check_ready, warn_if_plain
from lowrank_core.optim.checkpoint import check_geometry, restore, vet
from lowrank_core.optim.checks import called
from lowrank_core.optim.codecs import State
from lowrank_core.optim.compose import adopt, compose, find, open_state
from lowrank_core.optim.fused import Draft, fused
from lowrank_core.optim.options import check_values, own_keys, plain_numbers
from lowrank_core.optim.parts import Bucket, Parts, Slot, batches, slots
from lowrank_core.optim.plan import PlanRow, format_plan, plan_row
from lowrank_core.optim.projectors import Bases
from lowrank_core.telemetry import Projection

logger = logging.getLogger("lowrank_core.optim")

_REFRESHED_TOGETHER = 16  # matrices whose old and new bases are held at the same time

Params = Iterable[Any]  # tensors, (name, tensor) pairs or groups, as every torch optimizer takes them

_NO_WEIGHT = torch.empty(0, device="meta")  # stands for any, where only the keys of a group are looked at


class LowRankOptimizer(torch.optim.Optimizer):
    """The one `step()` that every optimizer of the package is; a subclass names its parts.

    One step, for each parameter W with a gradient G:
      refresh the basis if its schedule says so;  R = down(G);  N = rule(R);
      W <- (1 - lr weight_decay) W - lr up(N)

    Before anything is touched the gradients of the whole step are tested for inf and nan. They stay as they
    are. The groups hold every hyperparameter, and the parts are made from them anew at each step: schedulers,
    checkpoints and edits of a group act at once.

    Determinism: D1 (same bits for any number of threads), given such kernels. Draws from no global generator.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], torch_keys: dict[str, Any] | None = None) -> None:
        self._skipped: int | Tensor = 0
        self._bounds: dict[Tensor, int] = {}  # upper bounds of step counts that live on an accelerator
        own_keys(type(self).__name__, torch_keys or {}, defaults)
        defaults = plain_numbers(defaults)
        if not isinstance(params, Tensor):  # which torch refuses itself
            params = list(params)
            if any(isinstance(entry, dict) and entry.get("rank") is not None for entry in params):
                defaults = {**defaults, "rank": None}  # as with GaLore: who names no rank then wants none
        super().__init__(params, defaults)
        warn_if_plain(type(self).__name__, self.param_groups, self.plan())
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s\n%s", type(self).__name__, format_plan(self.plan()))

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        """The parts for weights of the dtype and on the device of `weight`. Raises ValueError for a bad value."""
        raise NotImplementedError(f"{cls.__name__}: a LowRankOptimizer must name its `parts`")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters: of this class, or one that another optimizer had.

        Raises:
          TypeError: a key is unknown, or a parameter trains in a dtype that no step computes in.
          ValueError: a value is out of its range.
          NotImplementedError: a parameter is a wrapper, such as a DTensor.
        """
        op = type(self).__name__
        group = plain_numbers({**self.defaults, **own_keys(op, param_group, self.defaults)})
        self.check_group(group)
        admit(op, group, self.param_groups)
        super().add_param_group(group)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a value of `group` is out of its range."""
        with called(type(self).__name__):
            check_values(type(self).__name__, group)
        self._parts(group, _NO_WEIGHT)

    def _parts(self, group: dict[str, Any], weight: Tensor) -> Parts:
        """`parts`, whose refusals name this class."""
        with called(type(self).__name__):
            return self.parts(group, weight)

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

    def plan(self) -> list[PlanRow]:
        """How each parameter is treated, and why: one row each, in order."""
        return [plan_row(slot.name, tuple(slot.param.shape), slot.geometry, slot.note) for _, _, slot in self._slots()]

    def projections(self) -> list[Projection]:
        """The subspace of each projected weight. Reads the captured shares: waits for an accelerator."""
        found = []
        for _, _, slot in self._slots():
            if slot.geometry is not None:
                state = self.state.get(slot.param) or {}
                captured = float(state["proj.captured"]) if "proj.captured" in state else None
                side, rank = slot.geometry.side.name.lower(), slot.geometry.rank
                history = state.get("proj.refreshes", 0), state.get("proj.last_refresh")
                found.append(Projection(slot.name, tuple(slot.param.shape), side, rank, captured, *history))
        return found

    def state_bytes(self) -> int:
        """Bytes of the state held now: whole storages, each counted once, so that a leaked view shows."""
        values = (value for state in self.state.values() for value in state.values())
        storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def planned_state_bytes(self) -> int:
        """Bytes of the state once every parameter has taken a step with a gradient that is not zero."""
        layouts = (self._parts(group, slot.weight).layout(slot) for _, group, slot in self._slots())
        return sum(prod(shape) * dtype.itemsize for layout in layouts for shape, dtype in layout.values())

    @property
    def skipped_steps(self) -> int:
        """Steps not taken because a gradient was not finite. Reads the count: waits for an accelerator."""
        return int(self._skipped)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over groups and state: dtypes as saved, tensors moved to the device of their parameter.

        Raises:
          ValueError: it was written by another optimizer or format version, or for parameters of other
            shapes, ranks or sides. Nothing is changed then.
        """
        fitting: dict[int, State] = {}

        def take(_: torch.optim.Optimizer, seen: dict[str, Any]) -> dict[str, Any]:
            fitting.update(vet(self, seen))
            return {**seen, "state": {}}  # torch would cast all of it to the parameters' dtypes

        def put(_: torch.optim.Optimizer) -> None:
            restore(self, fitting)

        # The last hook before and the first one after, so that hooks of the user's see what they always see.
        with (
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_skipped": self._skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it; it is no key of ours
        self._bounds = {}

    def _slots(self) -> Iterator[tuple[int, dict[str, Any], Slot]]:
        """(number of the group, group, slot) of every parameter."""
        start = 0
        for number, group in enumerate(self.param_groups):
            for slot in slots(group, start):
                yield number, group, slot
            start += len(group["params"])

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
