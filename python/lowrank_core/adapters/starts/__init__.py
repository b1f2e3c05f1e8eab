"""Starts of low-rank adapters: `init_lora_` and its table of methods."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.decompose import Search
from lowrank_core.adapters.find import Pair, find_pairs, require_module
from lowrank_core.adapters.products import with_product
from lowrank_core.adapters.square import is_square, put_square
from lowrank_core.adapters.starts.base_weight import BaseWeight, Fault, base_weight
from lowrank_core.adapters.starts.eva import eva
from lowrank_core.adapters.starts.lora_ga import lora_ga
from lowrank_core.adapters.starts.lora_sb import lora_sb
from lowrank_core.adapters.starts.lora_xs import lora_xs
from lowrank_core.adapters.starts.olora import olora
from lowrank_core.adapters.starts.pissa import pissa
from lowrank_core.adapters.starts.ranks import take_ranks
from lowrank_core.adapters.starts.start import OP, Factors, Settings, Start, Target
from lowrank_core.checks import is_count, is_number, require, require_choice
from lowrank_core.ops.arrays import MAX_SEED

METHODS: dict[str, Start] = {
    "pissa": Start(pissa, moves=True),
    "lora_ga": Start(lora_ga, data=True, moves=True, ranks=2),
    "lora_sb": Start(lora_sb, data=True, square=True),
    "lora_xs": Start(lora_xs, square=True),
    "eva": Start(eva, data=True, weight=False),
    "olora": Start(olora, moves=True),
}


def init_lora_(
    model: nn.Module,
    method: str = "pissa",
    *,
    batches: Iterable[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
    adapter: str | None = None,
    oversample: int = 10,
    niter: int = 4,
    gamma: float = 16.0,
    eta: float = 1e-5,
    std: float = 1e-5,
    cosine: float = 0.99,
    rho: float = 1.0,
    at_once: int | None = None,
) -> None:
    """Gives the adapters of `model` their first values, by the weights or by a few batches. What they held is lost.

    | method | B, A | W0 | looks at |
    | --- | --- | --- | --- |
    | "pissa" | U √(S / c), √(S / c) Vᵀ of W0 ≈ U S Vᵀ | W0 - c B A | weights |
    | "olora" | first columns of Q, first rows of R of W0 = Q R | W0 - c B A | weights |
    | "lora_ga" | left and right singular vectors of the mean gradient | W0 - c B A | gradients |
    | "eva" | 0, right singular vectors of a layer's inputs | stays | inputs |
    | "lora_xs" | U S, Vᵀ of W0 ≈ U S Vᵀ, frozen; S [r, r] between them trains | stays | weights |
    | "lora_sb" | U, Vᵀ of -η sign(mean gradient), frozen; S [r, r] between them trains | stays | gradients |

    c is the scale, alpha / r. Where W0 moves, the factors are rounded first and W0' = W0 - c B A is formed with the
    rounded ones, in float32 or float64, and rounded once: the layer acts as before to one rounding of its weight.

    Args:
      model: with adapters that `find_pairs` finds. Linear layers, GPT-2's Conv1D among them, start by every method;
        embeddings, convolutions and experts by "pissa", "olora" and "lora_ga"; beside weights that bitsandbytes or
        torchao has quantized by "eva", "lora_xs" and "lora_sb", which leave them as they are.
      method: a name of the table.
      batches: for "lora_ga", "lora_sb" and "eva": some, such as 8, dicts of the model's arguments or what `loss_fn`
        takes. "eva" stops early where its vectors have settled.
      loss_fn: loss_fn(model, batch) -> a loss of one number; None: model(**batch).loss.
      seed: 0 <= seed < 2**63, of all that is drawn.
      adapter: the name of one of PEFT's adapters; None: the active one.
      oversample, niter: of the search for singular vectors, as of `lowrank_core.rsvd`, with more
        iterations than there, for a start is made once.
      gamma: > 0, of "lora_ga": the factors are as long as m^(1/4) / √gamma for a weight of m outputs.
      eta: > 0, of "lora_sb": the rate of the one step of full training by which W0 + c B S A starts.
      std: >= 0, of "lora_xs": the standard deviation of S.
      cosine: in [0, 1], of "eva".
      rho: >= 1, of "eva": ranks move to the layers whose inputs have more to explain, up to `rho` times the rank of a
        layer, and as many in all as before; a layer may lose its adapter. The scale of each stays. 1: ranks stay;
        PEFT's own default is 2.
      at_once: of "lora_ga" and "lora_sb": so many gradients are held at a time, and the batches are gone through
        again for the next ones; None: all, in one pass.

    By "lora_xs", "lora_sb" and `rho` parameters are replaced: make the optimizer afterwards. `fold_square_` says how
    squares are saved. A PEFT adapter whose W0 moved fits the moved weights alone: docs/guides/adapters.md says how to
    save one that fits the weights of before.

    Raises:
      ValueError: an unknown method, a value out of its range, missing batches, no adapters, a rank above min(m, n)
        (half of that for "lora_ga"), a quantized weight that is to move or whose codes are not known, a shared or
        merged weight where it is looked at, a layer that the method does not start, NaN. TypeError: `model` is no
        module. Nothing has changed then.

    Numerics: tier D1 (same bits for any number of threads) for what looks at weights alone.
    Source: each file of `adapters/starts/` names its own.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> x = torch.ones(1, 6)
      >>> before = model(x)
      >>> adapters.init_lora_(model, "pissa")
      >>> torch.allclose(model(x), before, atol=1e-5), bool(model[0].lora_B.any())
      (True, True)
    """
    require_module(OP, model)
    require_choice(OP, "method", method, METHODS)
    start = METHODS[method]
    require(is_count(seed, 0) and seed <= MAX_SEED, OP, "seed", "be an int, 0 <= seed < 2**63", seed)
    for name, count in (("oversample", oversample), ("niter", niter)):
        require(is_count(count, 0), OP, name, "be an int >= 0", count)
    require(at_once is None or is_count(at_once, 1), OP, "at_once", "be an int >= 1, or None", at_once)
    require(is_number(gamma) and gamma > 0, OP, "gamma", "be a number > 0", gamma)
    require(is_number(eta) and eta > 0, OP, "eta", "be a number > 0", eta)
    require(is_number(std, 0.0), OP, "std", "be a number >= 0", std)
    require(is_number(cosine, 0.0) and cosine <= 1, OP, "cosine", "be a number from 0 to 1", cosine)
    require(is_number(rho, 1.0), OP, "rho", "be a number >= 1", rho)
    fix = "give a few, such as 8 of the training data"
    require(batches is not None or not start.data, OP, "batches", f'be given for method "{method}"', None, fix)
    if not (batches is None or isinstance(batches, Iterable)):
        raise TypeError(f"{OP}: `batches` must be a list of batches or a loader, got {type(batches).__name__}")
    if not (loss_fn is None or callable(loss_fn)):
        raise TypeError(f"{OP}: `loss_fn` must be a function of model and batch, got {type(loss_fn).__name__}")
    targets = _targets(model, method, start, adapter)
    search = Search(OP, int(oversample), int(niter), int(seed))
    settings = Settings(batches, loss_fn, search, gamma, eta, std, cosine, rho, at_once)
    found = start.find(model, targets, settings)
    pairs = take_ranks(model, [target.pair for target in targets], [len(factors.a) for factors in found])
    for target, factors, pair in zip(targets, found, pairs, strict=True):
        if pair is not None:
            _place(pair, target.base, factors, start)


def _targets(model: nn.Module, method: str, start: Start, adapter: str | None) -> list[Target]:
    pairs = find_pairs(model, adapter=adapter)
    if not pairs:
        raise ValueError(
            f"{OP}: `model` must have low-rank adapters, got one without"
            + (f" of the name {adapter!r}" if adapter else "")
            + "; put them in place by `peft.get_peft_model` or `LoRALinear`"
        )
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    seen: set[tuple[nn.Module, object]] = set()
    targets = []
    for pair in pairs:
        place = (pair.module, pair.expert)
        fault = Fault("two active adapters", "name one by `adapter`") if place in seen else _fault(pair, start)
        seen.add(place)
        base = base_weight(pair, start.moves) if start.weight and not fault else None
        if isinstance(base, Fault):
            fault = base
        elif base is not None and (start.moves or start.data) and owners[id(base.param)] > 1:
            fault = Fault("a weight that other modules share", 'untie it, or take "eva" or "lora_xs"')
        if fault:
            raise ValueError(f'{OP}: `model` must suit method "{method}", got {fault.what} in {pair.name}; {fault.fix}')
        targets.append(Target(pair, cast("BaseWeight | None", base)))
    return targets


def _fault(pair: Pair, start: Start) -> Fault | None:
    """What makes a pair unfit, whatever its weight."""
    module = cast(Any, pair.module)
    most = min(pair.b_of(pair.b).shape[0], pair.a_of(pair.a).shape[1]) // start.ranks
    if pair.values is not None:
        return Fault("AdaLoRA's values between the factors", "take LoRA")
    if is_square(pair):
        return Fault("a square matrix between the factors", "call `fold_square_` first")
    if getattr(module, "merged", False):
        return Fault("an adapter that is merged", "unmerge it first")
    if pair.rank > most:
        return Fault(f"rank {pair.rank}", f"it must be at most {most} here")
    if not math.isfinite(pair.scale) or pair.scale == 0:
        return Fault(f"the scale {pair.scale}", "give it another alpha")
    plain = pair.adapter is None or (not pair.embedding and type(module.lora_B[pair.adapter]) is nn.Linear)
    if start.square and not (plain and not hasattr(module, "parameter_name")):
        return Fault(f"a layer {type(module).__name__}, which is not linear,", "start it by another method")
    return None


@torch.no_grad()
def _place(pair: Pair, weight: BaseWeight | None, factors: Factors, start: Start) -> None:
    b, a, square = factors
    if square is not None:
        put_square(pair, b, square, a)
        return
    _put(pair.b, pair.b_of, b, pair.expert is None)
    _put(pair.a, pair.a_of, a, pair.expert is None)
    if start.moves and weight is not None:
        b, a = pair.b_of(pair.b), pair.a_of(pair.a)  # as they were rounded
        weight.write(with_product(weight.matrix, b, a, -pair.scale))


def _put(param: Tensor, matrix_of: Callable[[Tensor], Tensor], values: Tensor, whole: bool) -> None:
    """`values` where `matrix_of` reads them."""
    if whole:
        param.copy_(values.reshape(param.shape))
    else:
        matrix_of(param).copy_(values)
