"""AdaLoRA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair, find_pairs, require_module
from lowrank_core.adapters.fixed import IN_FLOAT32, check_fixed
from lowrank_core.adapters.layers import AdaLoRALinear
from lowrank_core.adapters.placing import linear_targets, put_back, put_in_place, saved_words, train_only
from lowrank_core.checks import is_count, is_number, require
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.memory.storage import WORK, Field, Layout, Role
from lowrank_core.optim.gathering import Drafts
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import check_values
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules import check_keys
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Slot
from lowrank_core.optim.targets import ALL_LINEAR

_KEPT = ("pairs", "start", "end", "total_steps", "t_init", "t_final", "gap", "smoothing", "orth", "steps", "_scored")


@dataclass(frozen=True)
class Scored(Adam):
    """Adam, and the running means of a weight's importance and of how uncertain that is."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        means = {key: Field(shape, WORK, Role.SECOND_MOMENT) for key in ("importance", "uncertainty")}
        return {**super().layout(shape), **means}


class AdaLoRA(LowRankOptimizer):
    """Adapters P diag(e) Q whose values are set to 0 where they matter least, and their optimizer.

    AdamW steps all that is trained, with the gradient of the penalty `orth` times the mean over factors of
    |PᵀP - I|_F, |QQᵀ - I|_F added to that of the factors. After a step every entry w of a part has I = |w dL/dw|,
    M <- b1 M + (1 - b1) I, D <- b2 D + (1 - b2) |I - M|; the score of a triple is M D of e_i, plus the means of M D
    over column i of P and row i of Q. All but the `budget` triples with the highest scores of all layers get e_i = 0.
    They keep their vectors, and may come back.

    The budget falls from all triples, `init_rank` for each layer, to `target_rank` for each layer, by the cube of the
    time that is left between `t_init` and `total_steps` - `t_final`. Then scores stay, and so does the choice.

    Args:
      model: with AdaLoRA layers of PEFT, which are taken as they are; or without, and its linear layers become
        `AdaLoRALinear`, everything else is frozen but for `modules_to_save`.
      target_rank, init_rank: >= 1, per layer, on average; `init_rank` of PEFT's layers is their own.
      total_steps: of the whole run; > t_init + t_final.
      t_init, t_final: >= 0, steps before the budget falls, and after it has fallen.
      gap: >= 1, steps from one choice to the next; in the final phase every step.
      smoothing: (b1, b2), in [0, 1).
      orth: >= 0, weight of the penalty. None: 0.5, and 0 for PEFT's layers: PEFT adds its own to the loss.
      target_modules, exclude, modules_to_save, alpha, seed: of layers that are put in place; `alpha` / init_rank is the
        scale, None: 1.
      lr, betas, eps, weight_decay, nonfinite, maximize: of AdamW, as in `GaLoreAdamW`.

    Raises:
      TypeError: `model` is no module. ValueError: a value out of its range, or nothing is targeted.

    Determinism: D1 (docs/numerics.md); of equal scores the earlier triple stays.
    Source: Zhang et al. 2023 (arXiv:2303.10512), with defaults, smoothing and penalty as in PEFT. Deviations: exactly
      `budget` triples stay, ties included; the run's last phase keeps the choice instead of building smaller layers.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Linear(12, 4))
      >>> optimizer = adapters.AdaLoRA(model, target_rank=1, init_rank=3, total_steps=4, lr=1e-2)
      >>> for _ in range(4):
      ...     optimizer.zero_grad()
      ...     model(torch.ones(3, 16)).square().mean().backward()
      ...     optimizer.step()
      >>> sum(optimizer.ranks().values())  # 1 for each of two layers
      2
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target_rank: int = 8,
        init_rank: int = 12,
        total_steps: int,
        t_init: int = 0,
        t_final: int = 0,
        gap: int = 1,
        smoothing: tuple[float, float] = (0.85, 0.85),
        orth: float | None = None,
        target_modules: str | Iterable[str] = ALL_LINEAR,
        exclude: str | Iterable[str] = EXCLUDED,
        modules_to_save: str | Iterable[str] = (),
        alpha: float | None = None,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
    ) -> None:
        op = type(self).__name__
        counts = {"target_rank": target_rank, "init_rank": init_rank, "t_init": t_init, "t_final": t_final, "gap": gap}
        for name, value in counts.items():
            least = 0 if name.startswith("t_") else 1
            require(is_count(value, least), op, name, f"be an int >= {least}", value)
        rule = f"be an int > t_init + t_final = {t_init + t_final}"
        require(is_count(total_steps, t_init + t_final + 1), op, "total_steps", rule, total_steps)
        require(orth is None or is_number(orth, 0.0), op, "orth", "be a number >= 0, or None", orth)
        keys = {
            **IN_FLOAT32, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed,
            "nonfinite": nonfinite, "maximize": maximize,
        }  # fmt: skip
        check_values(op, keys)
        check_keys(op, betas, eps)
        Adam(smoothing)  # two numbers in [0, 1)
        require_module(op, model)
        found = [pair for pair in find_pairs(model) if pair.values is not None]
        own = not found
        if own:
            names, words = linear_targets(op, model, target_modules, exclude), saved_words(op, model, modules_to_save)

            def make(base: nn.Linear, number: int) -> AdaLoRALinear:
                rank = min(init_rank, base.in_features, base.out_features)
                return AdaLoRALinear(base, rank, alpha=alpha, seed=mix_seed(seed, number) % 2**63)

            train_only(model, put_in_place(model, names, make).values(), words)
            found = [pair for pair in find_pairs(model) if pair.values is not None]
        self._model: nn.Module | None = model
        self.pairs: list[Pair] = found
        self.start = sum(pair.rank for pair in found)
        self.end = min(target_rank * len(found), self.start)
        self.total_steps, self.t_init, self.t_final, self.gap = total_steps, t_init, t_final, gap
        self.smoothing, self.steps = smoothing, 0
        self.orth = (0.5 if own else 0.0) if orth is None else float(orth)
        self._scored = {p for pair in found for p in (pair.a, pair.b, cast(Tensor, pair.values))}
        super().__init__([(name, p) for name, p in model.named_parameters() if p.requires_grad], keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        kind = Scored if group.get("scored") else Adam
        plain = kind(group["betas"], group["eps"])
        return replace(taken_whole(cls.__name__, group, weight, rule=plain), plain=plain)

    def varied(self, group: dict[str, Any], slot: Slot) -> dict[str, Any]:
        return {"scored": slot.param in self._scored}

    def check_group(self, group: dict[str, Any]) -> None:
        check_fixed(type(self).__name__, group, IN_FLOAT32)
        super().check_group(group)

    def budget(self, step: int) -> int:
        """How many triples stay after `step` finished steps."""
        last = self.total_steps - self.t_final
        if step <= self.t_init:
            return self.start
        left = max(0.0, 1 - (step - self.t_init) / (last - self.t_init))
        return self.end + int((self.start - self.end) * left**3)

    def ranks(self) -> dict[str, int]:
        """How many values of each layer are not 0, by its name."""
        return {pair.name: int(cast(Tensor, pair.values).count_nonzero()) for pair in self.pairs}

    def merge(self, model: nn.Module | None = None) -> nn.Module:
        """As of `GeoLoRA`, where the layers are of this package.

        Raises:
          TypeError: a weight is quantized; nothing has changed then. ValueError: PEFT's layers; a copy without a model.
        """
        layers = {pair.name: pair.module for pair in self.pairs}
        for name, layer in layers.items():
            if not isinstance(layer, AdaLoRALinear):
                raise ValueError(
                    f"merge: `model` must have layers of this package, got PEFT's in `{name}`; use its own"
                )
        return put_back(self._model if model is None else model, layers)

    def _apply(self, drafts: Drafts) -> None:
        before = self.skipped_steps
        places = {slot.param: (draft, i) for draft in drafts.values() for i, slot in enumerate(draft.slots)}
        grads = {param: draft.grads[i] for param, (draft, i) in places.items()}
        for param, penalty in self._penalties().items() if self.orth else ():
            if param in places:
                draft, i = places[param]
                draft.grads[i] = draft.grads[i] + penalty.view_as(draft.grads[i])
        super()._apply(drafts)
        if self.skipped_steps == before:
            self.steps += 1
            if self.steps <= self.total_steps - self.t_final:
                self._score(grads)
            if self.steps > self.t_init and (
                self.steps % self.gap == 0 or self.steps >= self.total_steps - self.t_final
            ):
                self._choose(self.budget(self.steps))

    def _penalties(self) -> dict[Tensor, Tensor]:
        """The gradient of the penalty by each factor, less where the loss is to grow."""
        sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
        weight, found = sign * self.orth / (2 * len(self.pairs)), {}
        for pair in self.pairs:
            for factor, rows in ((pair.a, pair.a_of(pair.a)), (pair.b, pair.b_of(pair.b).mT)):
                rows = rows.detach()
                off = rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
                slope = (2 * weight / off.norm().clamp(min=torch.finfo(rows.dtype).tiny)) * (off @ rows)
                found[factor] = (slope if factor is pair.a else slope.mT).reshape(factor.shape)
        return found

    def _score(self, grads: Mapping[Tensor, Tensor]) -> None:
        """Moves the running means on: the weights as they are now, and the gradients of the step."""
        first, second = self.smoothing
        for param in self._scored & grads.keys():
            state, found = self.state[param], (param.detach() * grads[param].view_as(param)).abs()
            state["importance"].lerp_(found.to(state["importance"].dtype), 1 - first)
            state["uncertainty"].lerp_((found - state["importance"]).abs(), 1 - second)

    def scores(self) -> list[Tensor]:
        """[r] for each layer: how much each of its triples matters."""
        return [self._scores_of(pair) for pair in self.pairs]

    def _scores_of(self, pair: Pair) -> Tensor:
        values = cast(Tensor, pair.values)
        if not all(self.state.get(param) for param in (pair.a, pair.b, values)):
            return torch.zeros(pair.rank)
        states = [self.state[param] for param in (values, pair.a, pair.b)]
        value, inner, outer = (state["importance"] * state["uncertainty"] for state in states)
        return cast(Tensor, value.flatten() + pair.a_of(inner).mean(1) + pair.b_of(outer).mean(0))

    def _choose(self, budget: int) -> None:
        """Sets all values to 0 but those of the `budget` triples with the highest scores."""
        scores = self.scores()
        order = torch.cat([score.cpu() for score in scores]).argsort(descending=True, stable=True)
        gone = torch.zeros(self.start, dtype=torch.bool)
        gone[order[budget:]] = True
        for pair, mask in zip(self.pairs, torch.split(gone, [len(score) for score in scores]), strict=True):
            values = cast(Tensor, pair.values)
            values.masked_fill_(mask.view(values.shape).to(values.device), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer; under "schedule" the count of steps and what the budget depends on."""
        return {**super().state_dict(), "schedule": {**self._schedule(), "steps": self.steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if another class, or one with another schedule, wrote it; nothing is changed then."""
        own = state_dict.get("schedule")
        if not isinstance(own, dict) or own.keys() != {*self._schedule(), "steps"}:
            raise ValueError(
                "load_state_dict: `state_dict` must be what AdaLoRA.state_dict() returned, got no such dict"
            )
        if differing := [key for key, value in self._schedule().items() if own[key] != value]:
            key = differing[0]
            raise ValueError(
                f"load_state_dict: `state_dict` must be of a run with `{key}` = {self._schedule()[key]}, got {own[key]}"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "schedule"})
        self.steps = own["steps"]

    def _schedule(self) -> dict[str, int]:
        return {key: getattr(self, key) for key in ("start", "end", "total_steps", "t_init", "t_final", "gap")}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: getattr(self, key) for key in _KEPT}, "_model": None}
