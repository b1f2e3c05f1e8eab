"""LoRAProAdamW."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.adapters.equivalent import equivalent_directions
from lowrank_core.adapters.find import Pair
from lowrank_core.adapters.pair_optimizer import Gradients, PairOptimizer
from lowrank_core.checks import is_number, require, require_choice
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.base import Params
from lowrank_core.optim.bucket import Bucket
from lowrank_core.optim.gathering import Drafts
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.refresh import signed
from lowrank_core.optim.slots import Slot
from lowrank_core.optim.step import ruled, write

MOMENTS = ("factors", "full")
_TOGETHER = 16  # pairs whose float64 copies are held at the same time

Place = tuple[Bucket, Slot, Tensor]  # of a parameter; with its gradient


@dataclass(frozen=True)
class Equivalent(Adam):
    """Adam on the gradient of whole weights, kept with A; nothing is kept with B."""

    full: tuple[int, ...] | None = None  # [m, n], or [experts, m, n]; None: of B

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {} if self.full is None else super().layout(self.full)


class LoRAProAdamW(PairOptimizer):
    """AdamW on directions of A and B whose product moves as the gradient G of the whole weight would move it.

    G is not formed: what B hA + hB A can follow of it, its projection onto the tangent space of products of rank r,
    comes from the gradients of A and B and r x r eigenproblems. Among all (hA, hB) that do so those next to LoRA's own
    gradients are taken. The step before AdamW does not depend on how the product is split into B and A.

    Args:
      model: with adapters that `find_pairs` finds, without AdaLoRA's.
      params: groups, or (name, parameter) pairs; None: all that is trained.
      lr: >= 0, number or tensor of one element.
      betas, eps: of AdamW.
      weight_decay: >= 0, decoupled.
      moments: "factors": AdamW's moments are those of hA and hB, r (m + n) numbers each. "full": those of the m x n
        projection of G, whose Adam direction is projected again; its state has the size of full training's, all of it
        with A (`moment_dtype="bfloat16"` halves it).
      ridge: > 0, by which eigenvalues of BᵀB and AAᵀ are raised, in units of their sum; a key of a group, read of that
        of A. None: the unit of A's dtype, at which what the gradients' own rounding becomes stays below its root.
      moment_dtype: "auto", "float32", "bfloat16" or "int8".
      rounding, seed, nonfinite, maximize, torch_keys: as in `GaLoreAdamW`.

    Raises:
      TypeError: `model` is no module, an unknown key. ValueError: no trained adapters, AdaLoRA's, or a value out of its
        range.

    Determinism: D2 (docs/numerics.md): eigenvectors are LAPACK's, products torch's. Sums over m and n are in float64,
      what is made of them is rounded to the dtype of the factors, float32 at least.
    Source: Wang et al. 2024 (arXiv:2407.18242). Deviations: the scale is the adapter's; a relative ridge, so B = 0 is a
      start like any other; symmetric eigenproblems; bias correction from step 1; "factors" is ours.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> optimizer = adapters.LoRAProAdamW(model, lr=1e-3, moments="full")
      >>> model(torch.ones(3, 6)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[model[0].lora_A]["exp_avg"].shape, bool(model[0].lora_B.any())
      (torch.Size([4, 6]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params | None = None,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        moments: str = "factors",
        ridge: float | None = None,
        moment_dtype: str = "auto",
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        **torch_keys: object,
    ) -> None:
        op = type(self).__name__
        require_choice(op, "moments", moments, MOMENTS)
        self.moments = moments
        keys = {key: value for key, value in locals().items() if key not in ("op", "moments")}
        super().__init__(model, params, keys)
        if odd := [pair.name for pair in self.pairs if pair.values is not None]:
            raise ValueError(
                f"{op}: `model` must have adapters of two factors, got AdaLoRA's in `{odd[0]}`; use `AdaLoRA` for it"
            )
        self._shapes = self._full_shapes()

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        found = super().parts(group, weight)
        if "full" not in group:
            return found
        return replace(found, plain=Equivalent(group["betas"], group["eps"], group["full"]))

    def varied(self, group: dict[str, Any], slot: Slot) -> dict[str, Any]:
        return {"full": self._shapes[slot.param]} if slot.param in self._shapes else {}

    def check_group(self, group: dict[str, Any]) -> None:
        ridge = group["ridge"]
        allowed = ridge is None or (is_number(ridge) and ridge > 0)
        require(allowed, type(self).__name__, "ridge", "be a number > 0, or None", ridge)
        super().check_group(group)

    def turn(self, some: list[Gradients]) -> None:
        ridges = self.by_param("ridge")
        for alike in _alike(some, ridges):
            pairs, ga, gb, new_a, new_b = map(list, zip(*alike, strict=True))
            directions = _directions(pairs, torch.stack(ga), torch.stack(gb), ridges[pairs[0].a])
            for outs, found in zip((new_a, new_b), directions, strict=True):
                for out, one in zip(outs, found, strict=True):
                    out.copy_(one)

    def _full_shapes(self) -> dict[Tensor, tuple[int, ...] | None]:
        """What the moments of A and B are of where they are of whole weights, by parameter."""
        if self.moments == "factors":
            return {}
        found: dict[Tensor, tuple[int, ...] | None] = {}
        for pair in self.pairs:
            experts = (pair.expert[1],) if pair.expert else ()
            found |= {pair.a: (*experts, len(pair.b_of(pair.b)), pair.a_of(pair.a).shape[1]), pair.b: None}
        return found

    def _apply(self, drafts: Drafts) -> None:
        if self.moments == "factors":
            super()._apply(drafts)
            return
        go, gate = self._judge(drafts)
        if not (go if gate is None else bool(gate)):
            return
        at: dict[Tensor, Place] = {}
        for bucket, draft in drafts.items():
            whole, rest = draft.part([slot.param in self._shapes for slot in draft.slots])
            at |= {slot.param: (bucket, slot, g) for slot, g in zip(whole.slots, whole.grads, strict=True)}
            if rest.slots:
                self._step(bucket, rest, None)
        together: dict[Tensor, list[Pair]] = {}
        for pair in self.pairs:
            if pair.a in at and pair.b in at:
                together.setdefault(pair.a, []).append(pair)
        for pairs in together.values():
            self._move(pairs, at[pairs[0].a], at[pairs[0].b])

    def _move(self, pairs: list[Pair], of_a: Place, of_b: Place) -> None:
        """One step of the pairs that two parameters hold: one, or one for each expert."""
        (bucket, slot, grad_a), (bucket_b, slot_b, grad_b) = of_a, of_b
        ridge, a, b = self.by_param("ridge")[slot.param], *_factors(pairs)
        scales = _scales(pairs).to(a.dtype)
        ga, gb = (torch.stack([of(p, g) for p in pairs]) for of, g in ((Pair.a_of, grad_a), (Pair.b_of, grad_b)))
        ha, hb = _directions(pairs, ga, gb, ridge)
        gradient = (scales * (b @ ha + hb @ a)).to(slot.work).view(self._shapes[slot.param] or ())
        states = self._state(bucket, slot), self._state(bucket_b, slot_b)
        for state in states:
            state["step"] += 1
        step = int(states[0]["step"])
        parts = bucket.parts
        found = ruled(parts.plain, parts.plain_codec, signed(bucket, gradient), slot, states[0], slot.draw(step))
        taken = found.dense().view(len(pairs), b.shape[1], a.shape[2]).to(a.dtype)
        ha, hb = _directions(pairs, scales * b.mT @ taken, scales * taken @ a.mT, ridge)
        sides = zip((of_a, of_b), (Pair.a_of, Pair.b_of), (ha, hb), states, strict=True)
        for (own, place, _), of, moved, state in sides:
            whole = torch.empty(place.param.shape, dtype=place.work, device=place.param.device)
            for pair, one in zip(pairs, moved, strict=True):
                of(pair, whole).copy_(one)
            write(place, own, Direction(whole), own.clock(place, state, step))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "moments": self.moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._shapes = self._full_shapes()


def _alike(some: list[Gradients], ridges: dict[Tensor, Any]) -> Iterator[list[Gradients]]:
    """A few at a time that have the same shapes, device, dtype and ridge."""
    found: dict[Any, list[Gradients]] = {}
    for one in some:
        a = one.pair.a
        key = (one.ga.shape, one.gb.shape, a.device, a.dtype, ridges[a])
        found.setdefault(key, []).append(one)
    for alike in found.values():
        yield from (alike[start : start + _TOGETHER] for start in range(0, len(alike), _TOGETHER))


def _scales(pairs: list[Pair]) -> Tensor:
    """[pairs, 1, 1]."""
    scales = [pair.scale for pair in pairs]
    return torch.tensor(scales, dtype=torch.float64, device=pairs[0].a.device).view(-1, 1, 1)


def _factors(pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """A [pairs, r, n] and B [pairs, m, r], in the dtype that is computed in."""
    a, b = [pair.a_of(pair.a.detach()) for pair in pairs], [pair.b_of(pair.b.detach()) for pair in pairs]
    return torch.stack(a).to(_work(pairs)), torch.stack(b).to(_work(pairs))


def _work(pairs: list[Pair]) -> torch.dtype:
    return torch.promote_types(pairs[0].a.dtype, torch.float32)


def _directions(pairs: list[Pair], ga: Tensor, gb: Tensor, ridge: float | None) -> tuple[Tensor, Tensor]:
    """hA [pairs, r, n] and hB [pairs, m, r] of pairs of one shape."""
    unit, work = torch.finfo(pairs[0].a.dtype).eps if ridge is None else ridge, _work(pairs)
    return equivalent_directions(ga.to(work), gb.to(work), *_factors(pairs), _scales(pairs), unit)
