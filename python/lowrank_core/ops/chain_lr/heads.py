"""The heads of an attention problem: their contract, and one set of leading dimensions for all arrays."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from lowrank_core.ops.arrays import Array, check_array, check_same, dtype_name, is_torch
from lowrank_core.ops.chain_lr.matmul import expand, leading


class Heads(NamedTuple):
    """Views: queries, keys, values, dout with the leading dimensions `lead`, then weight, a, b; features and mask."""

    arrays: list[Array]
    left: Array | None
    right: Array | None
    mask: Array | None
    lead: tuple[int, ...]


def check_heads(
    op: str, arrays: tuple[Array, ...], left: Array | None, right: Array | None, mask: Array | None, causal: bool
) -> Heads:
    """Refuses what does not fit; `arrays`: queries, keys, values, dout, a, b, weight."""
    queries, keys, values, dout, a, b, weight = arrays
    for name, array in zip(("queries", "keys", "values", "dout", "a", "b", "weight"), arrays, strict=True):
        check_array(op, name, array)
        check_same(op, name, array, queries)
        if name in ("keys", "values", "dout") and dtype_name(array) != dtype_name(queries):
            raise TypeError(f"{op}: `{name}` must be {dtype_name(queries)} as `queries`, got {dtype_name(array)}")
    (length, d_q), (count, d_k) = queries.shape[-2:], keys.shape[-2:]
    _expect(op, "values", values, (count, values.shape[-1]), "[..., M, d_v] with the M of `keys`")
    _expect(op, "dout", dout, (length, values.shape[-1]), "[..., L, d_v] with the L of `queries`, the d_v of `values`")
    _expect(op, "weight", weight, (d_q, d_k), "[d_q, d_k]", plain=True)
    _expect(op, "a", a, (a.shape[-2], d_k), "[r, d_k]", plain=True)
    _expect(op, "b", b, (d_q, a.shape[-2]), "[d_q, r]", plain=True)
    if causal and length != count:
        raise ValueError(f"{op}: `causal` must come with as many keys as queries, got {count} and {length}")
    seen = None if mask is None else _check_mask(op, mask, keys)
    if left is not None and right is not None:
        _check_features(op, left, right, queries, keys)
    return _layout(op, arrays, left, right, seen)


def _expect(op: str, name: str, array: Array, shape: tuple[int, int], words: str, *, plain: bool = False) -> None:
    if tuple(array.shape[-2:]) != shape or (plain and array.ndim != 2):
        raise ValueError(f"{op}: `{name}` must be {words}, here {list(shape)}, got shape {list(array.shape)}")


def _check_mask(op: str, mask: Array, keys: Array) -> Array:
    """The mask as bytes."""
    check_same(op, "key_mask", mask, keys)
    if str(getattr(mask, "dtype", "")).removeprefix("torch.") != "bool":
        raise TypeError(f"{op}: `key_mask` must be bool, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim < 1 or mask.shape[-1] != keys.shape[-2]:
        raise ValueError(f"{op}: `key_mask` must be [..., M] with M = {keys.shape[-2]}, got shape {list(mask.shape)}")
    return mask.to(sys.modules["torch"].uint8) if is_torch(mask) else mask.astype(np.uint8)


def check_pair(op: str, verb: str, features: Any) -> tuple[Array, Array]:
    """The two of what `features` is or returns."""
    if not isinstance(features, (tuple, list)) or len(features) != 2:
        got = f"{len(features)} arrays" if isinstance(features, (tuple, list)) else type(features).__name__
        raise TypeError(f"{op}: `features` must {verb} a pair (U, V), got {got}")
    return features[0], features[1]


def _check_features(op: str, left: Array, right: Array, queries: Array, keys: Array) -> None:
    for side, rows in ((left, queries.shape[-2]), (right, keys.shape[-2])):
        check_array(op, "features", side)
        check_same(op, "features", side, queries)
        if side.shape[-2] != rows or side.shape[-1] != left.shape[-1]:
            raise ValueError(
                f"{op}: `features` must be [..., L, k] and [..., M, k] with L = {queries.shape[-2]} and "
                f"M = {keys.shape[-2]}, got shapes {list(left.shape)} and {list(right.shape)}"
            )


def _layout(op: str, arrays: tuple[Array, ...], left: Array | None, right: Array | None, mask: Array | None) -> Heads:
    queries, keys, values, dout, a, b, weight = arrays
    groups = _groups(op, queries, keys)
    if mask is not None:
        mask = mask[..., None, :]  # a matrix of one row, like the others
    of_queries = [_split(x, groups) for x in (queries, dout)]
    of_keys = [_insert(x, groups) for x in (keys, values)]
    if mask is not None:
        mask = _insert(mask, groups)
    batched = [*of_queries, *of_keys, *([] if mask is None else [mask])]
    lead = leading(op, "queries, keys, values, dout, key_mask", [tuple(x.shape[:-2]) for x in batched])
    if left is not None and right is not None:  # features of what `attention_operands` gave have the layout already
        left = left if tuple(left.shape[:-2]) == lead else _split(left, groups)
        right = right if tuple(right.shape[:-2]) == lead else _insert(right, groups)
        leading(op, "features", [lead, tuple(left.shape[:-2]), tuple(right.shape[:-2])])
    q, g, k, v = (expand(x, (*lead, *x.shape[-2:])) for x in (*of_queries, *of_keys))
    left, right, mask = (None if x is None else expand(x, (*lead, *x.shape[-2:])) for x in (left, right, mask))
    return Heads([q, k, v, g, weight, a, b], left, right, None if mask is None else mask[..., 0, :], lead)


def _groups(op: str, queries: Array, keys: Array) -> tuple[int, int] | None:
    """Heads of keys, and how many of the queries' share one; None where they simply broadcast."""
    if queries.ndim < 3 or keys.ndim < 3:
        return None
    many, few = queries.shape[-3], keys.shape[-3]
    if few in (many, 1) or many == 1:
        return None
    if few == 0 or many % few:
        raise ValueError(f"{op}: `keys` must have a number of heads that divides the {many} of `queries`, got {few}")
    return int(few), int(many // few)


def _split(x: Array, groups: tuple[int, int] | None) -> Array:
    """[..., heads, n, d] as [..., heads of keys, groups, n, d]; a single head serves all."""
    if groups is None or x.ndim < 3:
        return x
    return x.reshape(*x.shape[:-3], *((1, 1) if x.shape[-3] == 1 else groups), *x.shape[-2:])


def _insert(x: Array, groups: tuple[int, int] | None) -> Array:
    """[..., heads of keys, n, d] as [..., heads of keys, 1, n, d]."""
    return x if groups is None or x.ndim < 3 else x[..., None, :, :]
