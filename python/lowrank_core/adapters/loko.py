"""LoKO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from lowrank_core.adapters import kalman
from lowrank_core.adapters.cotangent_rows import joined
from lowrank_core.adapters.cotangents import split_score
from lowrank_core.adapters.fixed import IN_FLOAT32, check_fixed
from lowrank_core.adapters.jacobian import jacobian_rows
from lowrank_core.adapters.noise import POLICIES, NoisePolicy, noise_policy
from lowrank_core.adapters.observation import Softmax, View, checked, evaluated, loss_of, resumed, views_of
from lowrank_core.adapters.tape import LinearTape, record_linears
from lowrank_core.adapters.variance import P0, Variance, starts
from lowrank_core.checks import is_count, is_number, require, require_choice
from lowrank_core.ops.kalman_diag import kalman_diag_step_
from lowrank_core.optim.base import Params, StateOptimizer
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Slot
from lowrank_core.optim.states import keep_state, open_state, state_of

_KEPT = ("policy", "batch", "kl_limit", "softmax", "chunk", "batched", "steps", "_options", "_noise")
BATCHES = (None, "stacked", "sequential", "mean")
# Besides, what only other optimizers read.
_FIXED: Mapping[str, Any] = {
    **IN_FLOAT32, "weight_decay": 0.0, "maximize": False, "betas": (0.9, 0.999), "eps": 1e-8,
}  # fmt: skip


class LoKO(StateOptimizer):
    """A Kalman filter over all trained parameters whose covariance is kept diagonal.

    After a forward pass `step(outputs, targets)` runs the backward passes that it needs, one for each observed row, and
    moves every parameter by its gain times the error:

        theta <- theta + lr p ∘ (g - Mᵀ S⁻¹ M (p ∘ g)),  p <- p ∘ (1 - s),  S = I + M diag(p) Mᵀ

    M is the whitened Jacobian of the outputs, g the score, minus the gradient of the summed loss. `step()` without
    arguments reads `.grad` instead, and takes the empirical Fisher matrix of one observation: one backward pass, in any
    loop and in Trainer.

    Args:
      model_or_params: a module, of which all that is trained is filtered; or parameters, (name, parameter) pairs, or
        groups. All groups are one filter.
      p0: > 0, the variances at the start, in units of the parameters squared; a key of a group. None: of the factors of
        an adapter by `variance.starts`, for which the optimizer must be made of the module, and 0.3 of all else.
      policy: the noise of the outputs: "ggn": class probabilities with their own covariance, 1 for float targets; or
        "ema_pre", "ema_post", "innovation", "scalar", "fixed", estimates for probabilities or float outputs.
      process_noise: >= 0; after each step that share of p0 is added to each variance, up to p0.
      lr: >= 0, factor on the change of the parameters; one for all groups. The variances do not see it.
      batch: of b samples: "stacked": all rows at once; "sequential": one after the other, on the same linearization;
        "mean": the same output of all samples is one row, √b times the mean, which is cheapest and has a part of the
        curvature; the score is that of "stacked". Refused for lumped classes and drawn labels. None: "stacked", but
        "sequential" where the noise is estimated, which is the only way there.
      fisher, keep, draws: which rows are observed of class probabilities: see `observation.Softmax`.
      kl_limit: > 0 or None; the change is scaled so that the divergence of the predictions before and after is at most
        this for each sample, to second order. Of float targets it is in units of their noise: scale them, or pass None.
      policy_options: of the estimate, such as {"beta": 0.9} (`noise.noise_policy`); {"epsilon": 0.01} of "ggn" is added
        to each variance of its noise, which damps where a prediction is confident and wrong (not for drawn labels).
      chunk, batched: as in `jacobian_rows`.
      seed: of the draws.
      nonfinite: "skip": an observation with NaN or infinity changes nothing and is counted; "raise". What the outputs
        hold at tokens that do not count does not matter, unless it comes back in gradients.

    State of a parameter: `variance`, float32 (float64 of float64), the numbers `p0` and `step`.

    Raises:
      TypeError: neither module nor parameters, or an unknown key or option. ValueError: a value out of its range.

    Notes: "stacked" and "sequential" differ, because the covariance is forced to be diagonal after each update.
    Determinism: D1 (docs/numerics.md), given such backward passes.
    Source: Abdi et al. 2024 (arXiv:2410.11551), from its abstract and reviews; its algorithm box was not read.
      Deviations: the softmax's own noise, the limit, and the variances at the start.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2)
      >>> optimizer, x, y = adapters.LoKO(model), torch.ones(1, 6), torch.tensor([2])
      >>> losses = [float(optimizer.step(model(x), y)) for _ in range(5)]
      >>> losses[-1] < losses[0]
      True
    """

    def __init__(
        self,
        model_or_params: nn.Module | Params,
        p0: float | None = None,
        policy: str = "ggn",
        process_noise: float = 0.0,
        lr: float | Tensor = 1.0,
        *,
        batch: str | None = None,
        fisher: str = "auto",
        keep: int = 8,
        draws: int = 4,
        kl_limit: float | None = 0.1,
        policy_options: Mapping[str, Any] | None = None,
        chunk: int = 8,
        batched: bool = False,
        seed: int = 0,
        nonfinite: str = "skip",
    ) -> None:
        op = type(self).__name__
        require_choice(op, "policy", policy, POLICIES)
        require_choice(op, "batch", batch, BATCHES)
        rule = 'be "sequential" where `policy` estimates the noise'
        require(policy == "ggn" or batch in (None, "sequential"), op, "batch", rule, batch, "leave it out")
        require(kl_limit is None or (is_number(kl_limit) and kl_limit > 0), op, "kl_limit", "be > 0 or None", kl_limit)
        require(is_count(chunk, 1), op, "chunk", "be an int >= 1", chunk)
        self._options = dict(policy_options or {})
        noise_policy(policy, 1, **self._options)  # what it refuses, it refuses here
        self.softmax = Softmax(fisher, keep, draws, self._options.get("epsilon", 0.0) if policy == "ggn" else 0.0)
        self.softmax.check(op, batch or "stacked")
        self.policy, self.batch, self.kl_limit = policy, batch or "stacked", kl_limit
        self.chunk, self.batched, self.steps = chunk, batched, 0
        self._noise: NoisePolicy | None = None
        self._tape: LinearTape | None = None
        self._model = model_or_params if isinstance(model_or_params, nn.Module) else None
        params: Any = model_or_params
        if self._model is not None:
            params = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
            require(bool(params), op, "model_or_params", "have parameters that are trained", "frozen ones alone")
        keys = {"lr": lr, "p0": p0, "process_noise": process_noise, "seed": seed, "nonfinite": nonfinite}
        super().__init__(params, {**_FIXED, **keys})

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(taken_whole(cls.__name__, group, weight, rule=Variance()), plain=Variance())

    def check_group(self, group: dict[str, Any]) -> None:
        op, p0, noise = type(self).__name__, group["p0"], group["process_noise"]
        check_fixed(type(self).__name__, group, _FIXED)
        require(p0 is None or (is_number(p0) and p0 > 0), op, "p0", "be a number > 0, or None", p0)
        require(is_number(noise, 0.0), op, "process_noise", "be a number >= 0", noise)
        super().check_group(group)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a forward pass: rows of linear layers come from recorded inputs, which is faster for large layers.

        Raises:
          ValueError: the optimizer was made of parameters, not of a module.
        """
        if self._model is None:
            raise ValueError("recording: the optimizer must be made of a module, got parameters; pass the module")
        with record_linears(self._model) as self._tape:
            yield

    @_disable_dynamo  # it walks a graph of autograd backwards, which is nothing to compile
    @torch.no_grad()
    def step(self, outputs: Any = None, targets: Tensor | None = None) -> Any:
        """One step of the filter.

        Args:
          outputs: [B, C], or [B, L, V] of a language model, with their graph, which the step uses up. None: `.grad` is
            read. Or a closure: it returns (outputs, targets), through wrappers that hand on nothing else, such as
            accelerate's; or it leaves gradients in `.grad`, as for torch's optimizers, and returns the loss.
          targets: classes [B] or [B, L], where -100 does not count; or floats of the outputs' shape.

        Returns:
          The loss before the step, 0-d: mean cross-entropy, or half the squared error, mean over samples. None where
          gradients are read; or what the closure returned.

        Raises:
          TypeError: no tensors. ValueError: shapes that do not fit; groups of different `lr`. RuntimeError: something
            is not finite, and a group has `nonfinite="raise"`.
        """
        outputs, targets = evaluated("step", outputs, targets)
        tape, self._tape = self._tape, None
        if targets is None:
            self._step_gradients()
            return outputs
        outputs, given = checked("step", outputs, targets)
        loss, slots, seed = loss_of(outputs, given), self._trained(), mix_seed(self.param_groups[0]["seed"], self.steps)
        softmax = self.softmax if self.policy == "ggn" else None
        found = views_of("step", outputs.detach(), given, softmax, seed, batch=self.batch)
        views = [view for view in found if len(view.cotangents)]
        for _ in range(len(found) - len(views)):
            self._skip()
        if views:
            self._observe_all(outputs, slots, views, tape)
        self.steps += 1
        return loss

    def _observe_all(self, outputs: Tensor, slots: list[Slot], views: list[View], tape: LinearTape | None) -> None:
        rows = jacobian_rows(
            outputs, [slot.param for slot in slots], joined([view.cotangents for view in views]), tape=tape,
            chunk=self.chunk, batched=self.batched,
        )  # fmt: skip
        parts = zip(*(torch.split(r, [len(view.cotangents) for view in views]) for r in rows), strict=True)
        start = [slot.param.clone() for slot in slots] if len(views) > 1 else None
        for view, part in zip(views, parts, strict=True):
            self._observe(slots, view, list(part), start)

    def _observe(self, slots: list[Slot], view: View, rows: list[Tensor], start: list[Tensor] | None) -> None:
        """One update. `start`: the parameters that the rows were taken at, where others came between."""
        since = None if start is None else [slot.param - old for slot, old in zip(slots, start, strict=True)]
        if view.error is None:
            jac, score = split_score(rows)
            self._filter(slots, jac, score if since is None else kalman.moved_on(score, jac, since), view.samples)
            return
        error = view.error if since is None else view.error - kalman.predicted_change(rows, since)
        kept = self._noise.state_dict() if self._noise else None
        noise = resumed(self.policy, len(error), self._options, kept)
        a = kalman.predicted_covariance(rows, self._variances(slots))
        if not bool(a.isfinite().all() & error.isfinite().all()):
            self._skip()
            return
        r = noise.before(error, a)
        jac, score = map(list, kalman.whiten(rows, error, kalman.deflate(r, a) if view.sums_to_zero else r))
        if self._filter(slots, jac, score, view.samples):
            noise.after(error, a, kalman.predicted_covariance(rows, self._variances(slots)))
            self._noise = noise

    def _step_gradients(self) -> None:
        """The empirical Fisher matrix of one observation: M and the score are minus the gradient."""
        slots = [slot for slot in self._trained() if slot.param.grad is not None]
        score = [-cast(Tensor, slot.param.grad) for slot in slots]
        if slots:
            self._filter(slots, [g.unsqueeze(0) for g in score], score, 1)
            self.steps += 1

    def _filter(self, slots: list[Slot], jac: list[Tensor], score: list[Tensor], samples: int) -> bool:
        """The update itself. False: something was not finite, and nothing has changed."""
        variances, limit = self._variances(slots), None if self.kl_limit is None else self.kl_limit * samples
        thetas = [slot.param for slot in slots]
        if not kalman_diag_step_(thetas, variances, jac, score, lr=self._rate(), kl_limit=limit):
            self._skip()
            return False
        stepped = {slot.key for slot in slots}
        for _, group, slot in self._slots():
            if slot.key in stepped:
                state, noise = state_of(self.state, slot), group["process_noise"]
                state["step"] += 1
                if noise:
                    state["variance"].add_(noise * state["p0"]).clamp_(max=state["p0"])
        return True

    def _skip(self) -> None:
        if any(group["nonfinite"] == "raise" for group in self.param_groups):
            raise RuntimeError("step: the observation must be finite, got inf or nan; nothing was changed")
        self._skipped = self._skipped + 1

    def _trained(self) -> list[Slot]:
        """Every parameter that is trained; a first step gives it its variance."""
        found: list[Slot] = []
        own: dict[Tensor, float] | None = None
        for _, group, slot in self._slots():
            if slot.param.requires_grad:
                found.append(slot)
                if not state_of(self.state, slot):
                    state, p0 = open_state(self._layout(group, slot), slot.param.device), group["p0"]
                    if p0 is None:
                        if own is None:
                            own = {} if self._model is None else starts(self._model)
                        p0 = own.get(slot.param, P0)
                    state["p0"] = float(p0)
                    state["variance"].fill_(state["p0"])
                    keep_state(self.state, slot, state)
        return found

    def _variances(self, slots: list[Slot]) -> list[Tensor]:
        return [state_of(self.state, slot)["variance"] for slot in slots]

    def _rate(self) -> float:
        rates = sorted({float(group["lr"]) for group in self.param_groups})
        require(len(rates) == 1, "step", "lr", "be the same in all groups, which are one filter", rates)
        return rates[0]

    def state_dict(self) -> dict[str, Any]:
        """Variances, counts and groups as of any optimizer; under "filter" the policy and its estimate of the noise."""
        noise = {} if self._noise is None else self._noise.state_dict()
        return {**super().state_dict(), "filter": {"policy": self.policy, "steps": self.steps, "noise": noise}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if another class, or another policy, wrote it; nothing is changed then."""
        own = state_dict.get("filter")
        if not isinstance(own, dict) or own.keys() != {"policy", "steps", "noise"}:
            raise ValueError("load_state_dict: `state_dict` must be what LoKO.state_dict() returned, got no such dict")
        if own["policy"] != self.policy:
            raise ValueError(
                f"load_state_dict: `state_dict` must be of policy {self.policy!r}, got one of {own['policy']!r}"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "filter"})
        self.steps, noise = own["steps"], own["noise"]
        self._noise = resumed(self.policy, len(noise["r"]), self._options, noise) if noise else None

    def __getstate__(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in _KEPT}
        return {**super().__getstate__(), **own, "_model": None, "_tape": None}
