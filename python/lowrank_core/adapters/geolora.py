"""GeoLoRA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from lowrank_core.adapters.fixed import IN_FLOAT32, check_fixed
from lowrank_core.adapters.layers import USVLinear
from lowrank_core.adapters.placing import linear_targets, put_back, put_in_place, saved_words, train_only
from lowrank_core.checks import is_count, is_number, require, require_choice
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.memory.storage import WORK, Field, Layout, Role
from lowrank_core.ops.rsvd import AugmentedBasis, augment_truncate
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.gathering import Drafts
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import check_values
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules import check_keys
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.targets import ALL_LINEAR

RULES = ("adam", "sgd")
Place = tuple[Bucket, Slot, State]  # of an S


@dataclass(frozen=True)
class Square(Adam):
    """Adam on S, and the running squares of the norms of the K- and the L-gradient, which scale their steps."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        norms = {f"{side}_norm_sq": Field((), WORK, Role.SECOND_MOMENT) for side in ("k", "l")}
        return {**super().layout(shape), **norms}


@dataclass(frozen=True)
class Bases(Adam):
    """U and V, which have no state: the step of S moves them."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {}


class GeoLoRA(LowRankOptimizer):
    """Low-rank adapters U S Vᵀ whose bases and ranks follow the gradient, and their optimizer.

    Each targeted linear layer becomes a `USVLinear`; everything else is frozen, but for `modules_to_save`, which AdamW
    steps. One backward pass gives the gradients of K = U S, L = V Sᵀ and S without any inverse. A step adds to each
    basis what of its gradient is orthogonal to it, steps K, L and S, and cuts the singular values of the result whose
    norm is below `tol` of all: ranks move between `min_rank` and `max_rank`. The parameters stay the same objects.

    Args:
      model: changed in place.
      target_modules, exclude: linear layers, as in `param_groups`.
      modules_to_save: words; parameters with one of them in their names are trained whole.
      rank: at the start. max_rank: None: twice that. min_rank: >= 1.
      tol: >= 0, the norm that a step may cut off, relative to that of the part as the step leaves it, before the cut.
        The norm before the step is no measure: it is 0 at the start, and nothing could be cut then.
      lr: >= 0, of all.
      scale: factor of all parts, constant whatever the rank.
      rule: "adam": Adam on S, whose moments turn with the bases; the steps of K and L have the norm that S's has, on
        average over past norms of their gradients. "sgd": gradients as they are; then the step before truncation is
        W - lr (U Uᵀ G + G V Vᵀ - U Uᵀ G V Vᵀ).
      basis_gap: >= 1; between the steps that move the bases, gap - 1 steps are of S alone.
      budget: largest sum of all ranks; the smallest singular values, times `scale`, go first. None: no limit.
      betas, eps, weight_decay: of AdamW; the decay acts on S, so on the whole part, and on what is trained whole.
      seed: of the bases at the start.
      nonfinite: "skip" or "raise", as in `GaLoreAdamW`.
      maximize: as there.

    Raises:
      TypeError: `model` is no module. ValueError: a value out of its range, or no linear layer is targeted; the model
        is as it was then.

    Determinism: D1 (docs/numerics.md).
    Source: Schotthöfer et al. 2024 (arXiv:2410.18720), algorithm 1. Deviations: no inverse of S, so S = 0 is a start;
      constant scale; truncation once a step, against the norm before the cut; `rule="adam"` is ours.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Linear(12, 4))
      >>> optimizer = adapters.GeoLoRA(model, rank=2, max_rank=2, lr=1e-2)
      >>> model(torch.ones(3, 16)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.ranks()
      {'0': 2, '1': 2}
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        target_modules: str | Iterable[str] = ALL_LINEAR,
        exclude: str | Iterable[str] = EXCLUDED,
        modules_to_save: str | Iterable[str] = (),
        rank: int = 8,
        max_rank: int | None = None,
        min_rank: int = 2,
        tol: float = 0.01,
        lr: float | Tensor = 1e-3,
        scale: float = 1.0,
        rule: str = "adam",
        basis_gap: int = 1,
        budget: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
    ) -> None:
        op = type(self).__name__
        most = 2 * rank if max_rank is None and is_count(rank, 1) else max_rank
        require(is_count(rank, 1), op, "rank", "be an int >= 1", rank)
        require(is_count(most, rank), op, "max_rank", f"be an int >= `rank` = {rank}, or None", max_rank)
        require(is_count(min_rank, 1) and min_rank <= rank, op, "min_rank", f"be an int from 1 to {rank}", min_rank)
        require(is_number(tol, 0.0), op, "tol", "be a number >= 0", tol)
        require_choice(op, "rule", rule, RULES)
        require(is_count(basis_gap, 1), op, "basis_gap", "be an int >= 1", basis_gap)
        keys = {
            **IN_FLOAT32, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed,
            "nonfinite": nonfinite, "maximize": maximize,
        }  # fmt: skip
        check_values(op, keys)
        check_keys(op, betas, eps)
        require(is_number(scale) and scale != 0, op, "scale", "be a number apart from 0", scale)
        words = saved_words(op, model, modules_to_save)
        names = linear_targets(op, model, target_modules, exclude)
        rule_of_budget = f"be an int >= {min_rank} for each of {len(names)} layers, or None"
        enough = budget is None or is_count(budget, min_rank * len(names))
        require(enough, op, "budget", rule_of_budget, budget)
        self._model: nn.Module | None = model
        self.rule, self.tol, self.basis_gap, self.budget = rule, tol, basis_gap, budget
        self.max_rank, self.min_rank = cast(int, most), min_rank

        def make(base: nn.Linear, number: int) -> USVLinear:
            shorter, own = min(base.in_features, base.out_features), mix_seed(seed, number)
            return USVLinear(
                base, min(rank, shorter), max_rank=min(cast(int, most), shorter), scale=scale, seed=own % 2**63
            )

        self.layers = put_in_place(model, names, make)
        kept = train_only(model, self.layers.values(), words)
        own = [(f"{name}.{key}", getattr(layer, key)) for name, layer in self.layers.items() for key in "usv"]
        self._squares = {layer.s for layer in self.layers.values()}
        self._bases = {basis for layer in self.layers.values() for basis in (layer.u, layer.v)}
        super().__init__([{"params": some} for some in (own, kept) if some], keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        kind = group.get("kind", Adam)
        plain = kind(group["betas"], group["eps"])
        return replace(taken_whole(cls.__name__, group, weight, rule=plain), plain=plain)

    def varied(self, group: dict[str, Any], slot: Slot) -> dict[str, Any]:
        return {"kind": Square if slot.param in self._squares else Bases if slot.param in self._bases else Adam}

    def check_group(self, group: dict[str, Any]) -> None:
        check_fixed(type(self).__name__, group, IN_FLOAT32)
        super().check_group(group)

    def ranks(self) -> dict[str, int]:
        """The rank of each layer, by its name."""
        return {name: layer.rank for name, layer in self.layers.items()}

    def to_lora(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """(b [out, r], a [r, in], scale) of each layer, by its name: what is added is scale b a."""
        return {name: (*layer.factors(), layer.scaling) for name, layer in self.layers.items()}

    def merge(self, model: nn.Module | None = None) -> nn.Module:
        """Adds every part to the weight beside it, and puts the linear layers back into the model, which it returns.

        Args:
          model: the one that holds the layers; None: the one that the optimizer was made of, unless it is a copy.

        Raises:
          TypeError: a weight is quantized; nothing has changed then. ValueError: a copy is given no model.
        """
        return put_back(self._model if model is None else model, self.layers)

    def _apply(self, drafts: Drafts) -> None:
        go, gate = self._judge(drafts)
        if not (go if gate is None else bool(gate)):
            return
        grads = {
            slot.param: grad for draft in drafts.values() for slot, grad in zip(draft.slots, draft.grads, strict=True)
        }
        whole = {layer.s for layer in self.layers.values() if layer.u in grads and layer.v in grads}
        due: dict[Tensor, Place] = {}
        for bucket, draft in drafts.items():
            kind = type(bucket.parts.plain)
            if kind is Square:
                turns = [int(self._state(bucket, slot)["step"]) % self.basis_gap == 0 for slot in draft.slots]
                now, draft = draft.part([turn and s.param in whole for turn, s in zip(turns, draft.slots, strict=True)])
                due |= {slot.param: (bucket, slot, self._state(bucket, slot)) for slot in now.slots}
            if kind is not Bases and draft.slots:
                self._step_whole(bucket, draft)
        if due:
            layers = [layer for layer in self.layers.values() if layer.s in due]
            self._move(layers, [due[layer.s] for layer in layers], grads)

    def _step_whole(self, bucket: Bucket, draft: Draft) -> None:
        if type(bucket.parts.plain) is Square and self.rule == "sgd":
            for slot, grad in zip(draft.slots, draft.grads, strict=True):
                self._state(bucket, slot)["step"] += 1
                slot.param.mul_(1 - bucket.lr * bucket.weight_decay).add_(grad, alpha=_signed_rate(bucket))
        else:
            self._step(bucket, draft, None)

    def _move(self, layers: list[USVLinear], places: list[Place], grads: Mapping[Tensor, Tensor]) -> None:
        """One step of bases, ranks and S of `layers` in one call."""
        found = [self._directions(layer, *place, grads) for layer, place in zip(layers, places, strict=True)]
        gv, gu, gs = map(list, zip(*found, strict=True))
        bucket = places[0][0]
        decay = 1 - float(bucket.lr) * bucket.weight_decay
        parts, others = [layer.parts() for layer in layers], sum(self.ranks().values()) - sum(x.rank for x in layers)
        moved = augment_truncate(
            [u for u, _, _ in parts], [decay * s for _, s, _ in parts], [v for _, _, v in parts], gv, gu, gs=gs,
            lr=float(bucket.lr), tol=self.tol, max_rank=self.max_rank, min_rank=self.min_rank,
            budget=None if self.budget is None else self.budget - others,
            weights=[abs(layer.scaling) for layer in layers],
        )  # fmt: skip
        for layer, (_, _, state), new in zip(layers, places, moved, strict=True):
            old, rank = layer.rank, len(new.s)
            layer.take(new.u, new.s, new.v)
            if self.rule == "adam":
                for key, left, right in (("exp_avg", new.left, new.right), ("exp_avg_sq", *_squared(new))):
                    turned = left.mT @ state[key][:old, :old] @ right
                    state[key].zero_()[:rank, :rank] = turned

    def _directions(
        self, layer: USVLinear, bucket: Bucket, slot: Slot, state: State, grads: Mapping[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of K, of L, of S: what is subtracted, times `lr`."""
        sign = -1.0 if bucket.maximize else 1.0
        r = layer.rank
        k, low, s = sign * grads[layer.u][:, :r], sign * grads[layer.v][:, :r], sign * grads[layer.s]
        state["step"] += 1
        step = int(state["step"])
        if self.rule == "sgd":
            return k, low, s[:r, :r]
        adam = cast(Adam, bucket.parts.plain)
        direction = adam.update(s, state, step).dense()[:r, :r]
        return (
            self._normed(k, state["k_norm_sq"], adam, step),
            self._normed(low, state["l_norm_sq"], adam, step),
            direction,
        )

    @staticmethod
    def _normed(gradient: Tensor, norm_sq: Tensor, adam: Adam, step: int) -> Tensor:
        """`gradient` over the root mean square of past norms of it, times r: the norm of Adam's direction of S."""
        beta = adam.betas[1]
        norm_sq.lerp_(gradient.square().sum(), 1 - beta)
        mean = (norm_sq / (1 - beta**step)).sqrt()
        return gradient * (gradient.shape[1] / (mean + adam.eps))

    def __getstate__(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in _KEPT}
        return {**super().__getstate__(), **own, "_model": None}


_KEPT = ("rule", "tol", "basis_gap", "budget", "max_rank", "min_rank", "layers", "_squares", "_bases")


def _squared(new: AugmentedBasis) -> tuple[Tensor, Tensor]:
    """How variances turn: by the squares, as if the entries were independent."""
    return new.left.square(), new.right.square()


def _signed_rate(bucket: Bucket) -> float:
    return float(bucket.lr) if bucket.maximize else -float(bucket.lr)
