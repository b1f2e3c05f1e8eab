"""Adapters out of adapters, and out of two models: always as factors, never as a matrix of the weight's size."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from lowrank_core.adapters.decompose import Search, alike
from lowrank_core.adapters.peft_state import PREFIX, Module, PeftAdapter, adapter_of, modules_of
from lowrank_core.adapters.progress import progress
from lowrank_core.checks import is_count, is_number, require
from lowrank_core.ops.arrays import MAX_SEED
from lowrank_core.ops.rsvd import RSVD, factored_svd

_MERGE, _EXTRACT = "merge_adapters", "extract_lora"
Matrices = tuple[Tensor, Tensor]
EMBEDDINGS = ("embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings")


@overload
def merge_adapters(pairs: Sequence[Matrices], weights: Sequence[float], rank: int) -> Matrices: ...
@overload
def merge_adapters(
    pairs: Sequence[tuple[Mapping[str, Tensor], Any]], weights: Sequence[float], rank: int
) -> PeftAdapter: ...
def merge_adapters(pairs: Sequence[Any], weights: Sequence[float], rank: int) -> Matrices | PeftAdapter:
    """The best approximation of rank `rank` of a weighted sum of adapters, in the Frobenius norm.

    Args:
      pairs: (b [m, r_i], a [r_i, n]) each, whose product is added to a weight; any floating dtypes. Or (state,
        config) each: what `peft.get_peft_model_state_dict` returns and its `LoraConfig`, or what `read_adapter`
        returns. Then alpha / r counts with the weights, and each module is merged for itself; one that is not in all
        of them is merged from those that have it.
      weights: w_i, one for each; negative ones too.
      rank: 1 <= rank <= min(m, n, sum of r_i); of state dicts the bound is taken where it is smaller.

    Returns:
      (b [m, rank], a [rank, n]) with b a ≈ sum of w_i b_i a_i, b = U √S and a = √S Vᵀ; float64 where one of them is,
      else float32. Or PeftAdapter(state, config): an adapter of scale 1, which `save_adapter` writes and stock PEFT
      loads.

    Raises:
      ValueError: shapes that do not fit, no pair, another number of weights, a rank out of its range, NaN, tensors
        that are no factors of LoRA. TypeError: neither tensors nor state dicts.

    Numerics: tier D1 (same bits for any number of threads).
    Source: Eckart, Young 1936, by the SVD of a product of the stacked factors (`factored_svd`).

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> one, other = (torch.ones(4, 1), torch.ones(1, 6)), (torch.eye(4, 2), torch.eye(2, 6))
      >>> b, a = adapters.merge_adapters([one, other], [0.5, 0.5], rank=3)
      >>> torch.allclose(b @ a, 0.5 * (one[0] @ one[1] + other[0] @ other[1]), atol=1e-6)
      True
    """
    for key, given in (("pairs", pairs), ("weights", weights)):
        if not isinstance(given, Iterable) or isinstance(given, str):
            raise TypeError(f"{_MERGE}: `{key}` must be a list, got {type(given).__name__}")
    pairs, weights = list(pairs), list(weights)
    require(len(pairs) > 0, _MERGE, "pairs", "have one or more", len(pairs))
    fits = len(weights) == len(pairs) and all(is_number(weight) for weight in weights)
    require(fits, _MERGE, "weights", f"be {len(pairs)} numbers, one for each pair", weights)
    require(is_count(rank, 1), _MERGE, "rank", "be an int >= 1", rank)
    if all(_is_matrices(pair) for pair in pairs):
        limit = _check_factors("`pairs`", pairs)
        require(rank <= limit, _MERGE, "rank", f"be at most {limit} = min(m, n, sum of ranks)", rank)
        return _merged(pairs, weights, rank)
    adapters = [modules_of(_MERGE, pair) for pair in pairs]
    names = dict.fromkeys(name for modules in adapters for name in modules)
    merged = {}
    for name in progress(names, "modules"):
        found = [(modules[name], weight) for modules, weight in zip(adapters, weights, strict=True) if name in modules]
        first = found[0][0]
        factors = [(module.b, module.a) for module, _ in found]
        limit = _check_factors(f"the factors of {name} in `pairs`", factors)
        if any((module.embedding, module.kernel) != (first.embedding, first.kernel) for module, _ in found):
            raise ValueError(f"{_MERGE}: `pairs` must have layers of one kind, got different ones at {name}")
        b, a = _merged(factors, [weight for _, weight in found], min(rank, limit))
        merged[name] = Module(b, a, first.embedding, first.kernel)
    return adapter_of(merged, rank, _common_config(pairs))


@overload
def extract_lora(
    base: Tensor, tuned: Tensor, rank: int, *, oversample: int = 10, niter: int = 2, seed: int = 0
) -> Matrices: ...
@overload
def extract_lora(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    seed: int = 0,
    target_modules: Collection[str] | None = None,
    embeddings: Collection[str] = EMBEDDINGS,
    fan_in_fan_out: bool = False,
) -> PeftAdapter: ...
def extract_lora(
    base: Tensor | Mapping[str, Tensor],
    tuned: Tensor | Mapping[str, Tensor],
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    seed: int = 0,
    target_modules: Collection[str] | None = None,
    embeddings: Collection[str] = EMBEDDINGS,
    fan_in_fan_out: bool = False,
) -> Matrices | PeftAdapter:
    """The adapter of rank `rank` that makes `base` most like `tuned`: a randomized SVD of their difference.

    Args:
      base, tuned: [m, n] each, any floating dtypes. Or state dicts of two models: every matrix whose name ends with
        ".weight" and that differs is taken; matrices of one shape are decomposed in one call.
      rank: 1 <= rank <= min(m, n); of state dicts the bound is taken where it is smaller.
      oversample, niter, seed: as of `lowrank_core.rsvd`.
      target_modules: last parts of the names of the modules that are taken; None: all.
      embeddings: last parts of the names of modules that are embeddings, whose factors PEFT stores transposed.
      fan_in_fan_out: True for the [in, out] weights of GPT-2's Conv1D; name these alone in `target_modules`.

    Returns:
      (b [m, rank], a [rank, n]) with base + b a ≈ tuned, float64 where one of them is, else float32. Or
      PeftAdapter(state, config), as of `merge_adapters`.

    Raises:
      ValueError: shapes that differ, a rank out of its range, NaN, nothing that differs. TypeError: neither tensors nor
        state dicts.

    Warns:
      RuntimeWarning: tensors changed that no adapter of the result holds, such as norms and biases.

    Numerics: tier D1 (same bits for any number of threads).
    Source: Eckart, Young 1936; the decomposition is that of `lowrank_core.rsvd`.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> base = torch.zeros(4, 6)
      >>> b, a = adapters.extract_lora(base, base + 1, rank=1)
      >>> torch.allclose(b @ a, torch.ones(4, 6), atol=1e-6)
      True
    """
    require(is_count(rank, 1), _EXTRACT, "rank", "be an int >= 1", rank)
    for key, count in (("oversample", oversample), ("niter", niter), ("seed", seed)):
        require(is_count(count, 0) and count <= MAX_SEED, _EXTRACT, key, "be an int >= 0", count)
    search = Search(_EXTRACT, int(oversample), int(niter), int(seed))
    if isinstance(base, Tensor) and isinstance(tuned, Tensor):
        _check_alike("`tuned`", base, tuned)
        limit = min(base.shape) if base.ndim == 2 else 0
        require(base.ndim == 2, _EXTRACT, "base", "be a matrix", list(base.shape))
        require(rank <= limit, _EXTRACT, "rank", f"be at most {limit} = min(m, n)", rank)
        found = search.leading("tuned", "differences from `base`", [("the matrix", _difference(base, tuned))], [rank])
        return _balanced(found[0], tuned)
    if not (isinstance(base, Mapping) and isinstance(tuned, Mapping)):
        kinds = f"{type(base).__name__} and {type(tuned).__name__}"
        raise TypeError(f"{_EXTRACT}: `base` and `tuned` must be two tensors or two state dicts, got {kinds}")
    names = _changed(base, tuned, target_modules)
    ranks = [min(rank, *tuned[name].shape) for name in names]
    modules = {}
    for part in alike([tuned[name] for name in names], ranks):
        named = [(names[i], _difference(base[names[i]], tuned[names[i]])) for i in part]
        found = search.leading("tuned", "differences from `base`", named, [ranks[i] for i in part])
        for (name, _), triplet in zip(named, found, strict=True):
            module = name.removesuffix(".weight")
            embedding = module.rpartition(".")[2] in embeddings
            b, a = _balanced(triplet, tuned[name])
            b, a = (a.mT, b.mT) if embedding or fan_in_fan_out else (b, a)
            modules[PREFIX + module] = Module(b, a, embedding)
    ordered = {key: modules[key] for key in (PREFIX + name.removesuffix(".weight") for name in names)}
    return adapter_of(ordered, rank, {"fan_in_fan_out": fan_in_fan_out})


# ---- merging -------------------------------------------------------------------------------------------------------


def _is_matrices(pair: object) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair)


def _check_factors(what: str, pairs: Sequence[Matrices]) -> int:
    """The largest rank of a merger."""
    m, n = pairs[0][0].shape[0], pairs[0][1].shape[-1]
    for b, a in pairs:
        if b.ndim != 2 or a.ndim != 2 or (b.shape[0], b.shape[1], a.shape[1]) != (m, a.shape[0], n):
            raise ValueError(
                f"{_MERGE}: {what} must be [{m}, r] and [r, {n}] as the first, got {list(b.shape)} and {list(a.shape)}"
            )
        if not all(x.is_floating_point() and bool(torch.isfinite(x).all()) for x in (b, a)):
            raise ValueError(f"{_MERGE}: {what} must be floating-point and finite, got NaN, infinity or another dtype")
    return int(min(m, n, sum(b.shape[1] for b, _ in pairs)))


def _merged(pairs: Sequence[Matrices], weights: Iterable[float], rank: int) -> Matrices:
    like = pairs[0][0]
    wide = torch.float32
    for tensor in (x for pair in pairs for x in pair):
        wide = torch.promote_types(wide, tensor.dtype)
    b = torch.cat([weight * b.detach().to("cpu", wide) for (b, _), weight in zip(pairs, weights, strict=True)], 1)
    a = torch.cat([a.detach().to("cpu", wide) for _, a in pairs])
    return _balanced(factored_svd(b, a, rank=rank), like)


def _balanced(found: RSVD, like: Tensor) -> Matrices:
    """U √S and √S Vᵀ on the device of `like`."""
    root = found.s.sqrt()
    return (found.u * root).to(like.device), (root.unsqueeze(-1) * found.vh).to(like.device)


def _common_config(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    configs = [dict(config.to_dict() if hasattr(config, "to_dict") else config) for _, config in pairs]
    orders = [bool(config.get("fan_in_fan_out")) for config in configs]
    if len(set(orders)) > 1:
        raise ValueError(f"{_MERGE}: `pairs` must have configurations of one fan_in_fan_out, got {orders}")
    return configs[0]


# ---- extraction ----------------------------------------------------------------------------------------------------


def _difference(base: Tensor, tuned: Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
    return tuned.detach().to("cpu", wide) - base.detach().to("cpu", wide)


def _check_alike(what: str, base: Tensor, tuned: Tensor) -> None:
    if base.shape != tuned.shape:
        raise ValueError(f"{_EXTRACT}: {what} must be {list(base.shape)} as `base`, got shape {list(tuned.shape)}")


def _changed(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], wanted: Collection[str] | None) -> list[str]:
    """Names of the matrices that differ."""
    names: list[str] = []
    left: list[str] = []
    for name, tensor in tuned.items():
        if name not in base:
            raise ValueError(f"{_EXTRACT}: `base` must have every tensor of `tuned`, got one without {name!r}")
        _check_alike(f"{name!r} of `tuned`", base[name], tensor)
        if tensor.is_floating_point() and not torch.equal(base[name], tensor):
            last = name.removesuffix(".weight").rpartition(".")[2]
            fits = tensor.ndim == 2 and name.endswith(".weight") and (wanted is None or last in wanted)
            (names if fits else left).append(name)
    if not names:
        raise ValueError(f"{_EXTRACT}: `tuned` must differ from `base` in a matrix, got none that does")
    if left:
        some = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        sentence = f"{_EXTRACT}: {len(left)} tensors changed that the adapter does not hold: {some}"
        warnings.warn(sentence, RuntimeWarning, stacklevel=3)
    return names
