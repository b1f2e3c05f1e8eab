"""EVA: the directions in which the inputs of a layer are largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.decompose import Search
from lowrank_core.adapters.progress import progress
from lowrank_core.adapters.starts.gradients import evaluating, require_batches, run, without_adapters
from lowrank_core.adapters.starts.ranks import shared_out
from lowrank_core.adapters.starts.start import OP, Factors, Settings, Target


def eva(model: nn.Module, targets: list[Target], settings: Settings) -> list[Factors]:
    """A = the top right-singular vectors of all inputs seen, tokens as rows; B = 0.

    The vectors follow the batches: what is known so far stands as rows above the new inputs, and the search starts from
    the last vectors. A layer whose vectors all turn by a cosine of at least `cosine` in a batch is done. Tokens that
    `attention_mask` of a batch hides do not count. No mean is subtracted.

    With `rho` above 1 up to `rho` times the rank of vectors are followed in each layer. Those that explain the largest
    shares of what their layers have seen, as many as all ranks together, are the factors.

    Source: Paischer et al. 2024 (arXiv:2410.07170), algorithm 1; the shares of a layer as in PEFT, but for its mean.
    """
    _require_linear(targets)
    watches = [_Watch(target, settings) for target in targets]
    handles = [watch.target.pair.module.register_forward_pre_hook(watch.see) for watch in watches]
    batches: Any = settings.batches
    count = 0
    try:
        with evaluating(model), without_adapters(targets), torch.no_grad():
            for batch in progress(batches, "inputs"):
                mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                memo: dict[str, Any] = {}
                for watch in watches:
                    watch.mask, watch.memo = mask, memo
                run(model, batch, settings.loss_fn)
                count += 1
                if all(watch.done for watch in watches):
                    break
    finally:
        for handle in handles:
            handle.remove()
    require_batches(count)
    for watch in watches:
        watch.require_full()
    ranks = [target.pair.rank for target in targets]
    if settings.rho > 1:
        ranks = shared_out([watch.shares() for watch in watches], sum(ranks))
    return [watch.factors(rank) for watch, rank in zip(watches, ranks, strict=True)]


def _require_linear(targets: list[Target]) -> None:
    for target in targets:
        pair = target.pair
        factor = pair.a if pair.adapter is None or pair.embedding else pair.module.lora_A[pair.adapter]  # type: ignore[index]
        linear = isinstance(factor, nn.Linear | nn.Parameter) and not pair.embedding and pair.expert is None
        if not linear or hasattr(pair.module, "parameter_name"):
            raise ValueError(
                f'{OP}: `model` must have adapters of linear layers alone for method "eva", got {target.name} in '
                f"{type(pair.module).__name__}; start it by another method"
            )


@dataclass(frozen=True, eq=False)
class _Seen:
    """The inputs so far: `values` [k] and `vectors` [k, n] of their singular value decomposition, and their square."""

    values: Tensor
    vectors: Tensor
    square: Tensor  # 0-d float64, of all of them


@dataclass(eq=False)
class _Watch:
    """Looks at the inputs of one layer."""

    target: Target
    settings: Settings
    seen: _Seen | None = None
    done: bool = False
    mask: Tensor | None = None
    memo: dict[str, Any] = field(default_factory=dict)  # of this batch, shared with the other layers

    def see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.done or not inputs:
            return
        before = self.seen
        x, rank = inputs[0], self.most
        # Layers side by side (queries, keys, values) get one tensor: it is decomposed once as long as they agree.
        key = (x, before, rank, self.mask)
        last = self.memo.get("key", ())
        if len(last) == len(key) and all(one is other for one, other in zip(last, key, strict=True)):
            self.seen = self.memo["seen"]
        else:
            self.seen = _followed(before, self._rows(x), rank, self.settings.search, self.target.name)
            self.memo["key"], self.memo["seen"] = key, self.seen
        if before is not None and self.seen is not before and self.seen is not None:
            turned = (before.vectors[:rank] * self.seen.vectors[:rank]).sum(-1).abs() if self.full(before) else None
            self.done = turned is not None and bool((turned >= self.settings.cosine).all())

    @property
    def most(self) -> int:
        """How many vectors may be taken."""
        pair = self.target.pair
        return max(pair.rank, min(round(self.settings.rho * pair.rank), pair.b.shape[0], pair.a.shape[1]))

    def full(self, seen: _Seen) -> bool:
        return len(seen.values) >= self.most

    def require_full(self) -> None:
        """Raises ValueError if there are fewer vectors than the rank."""
        found, rank = 0 if self.seen is None else len(self.seen.values), self.target.pair.rank
        if found < rank:
            raise ValueError(
                f"{OP}: `batches` must have at least {rank} tokens for {self.target.name}, got {found}; give more"
            )

    def shares(self) -> Tensor:
        """[k] float64, k <= most: of the square of all inputs, what each vector explains."""
        seen = cast(_Seen, self.seen)
        return seen.values[: self.most].double().square() / seen.square.clamp(min=torch.finfo(torch.float64).tiny)

    def factors(self, rank: int) -> Factors:
        a = cast(_Seen, self.seen).vectors[:rank]
        return Factors(a.new_zeros(self.target.pair.b.shape[0], rank), a)

    def _rows(self, x: Tensor) -> Tensor:
        """[tokens, n] on the host."""
        if self.mask is not None and self.mask.shape == x.shape[:-1]:
            x = x[self.mask.to(x.device) != 0]
        rows = x.detach().flatten(0, -2) if x.ndim > 1 else x.detach().unsqueeze(0)
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).cpu()


def _followed(seen: _Seen | None, rows: Tensor, rank: int, search: Search, name: str) -> _Seen | None:
    """The decomposition of what was seen and `rows` [t, n]."""
    if len(rows) == 0:
        return seen
    search.require_finite("model", "inputs of layers", [(name, rows)])
    stacked = rows if seen is None else torch.cat([seen.values.unsqueeze(-1) * seen.vectors, rows])
    keep = min(rank + search.oversample, *stacked.shape)
    basis = None if seen is None else seen.vectors.mT
    u, s, _ = search.one(stacked.mT, keep, basis)
    square = rows.double().square().sum()
    return _Seen(s, u.mT, square if seen is None else seen.square + square)
