"""Adapter gradients of attention scores: exact by tiles, or chained through features."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_finite, call_named, converted, dtype_name, empty, is_torch, plain_int
from lowrank_core.ops.chain_lr.heads import Heads, check_heads, check_pair
from lowrank_core.ops.chain_lr.matmul import finite_number
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

_OP = "attention_lora_grad"
MAX_ERROR = 0.5  # estimate above which the chained gradient is refused
MAX_FEATURES = 1 << 14  # monomials: their products with the values would no longer be thin
CHAIN_COST = {False: 1.5, True: 2.2}  # measured: a multiply-add of the chain beside one of the exact method; causal
NAMES = ("queries", "keys", "values", "dout", "a", "b", "weight", "features[0]", "features[1]")
Triplet = tuple[Array, Array, Array]


class AttentionLoRAGrad(NamedTuple):
    """`da` [r, d_k], `db` [d_q, r], and an estimate of their relative Frobenius error made before computing them."""

    da: Array
    db: Array
    error_bound: Array


def attention_lora_grad(
    queries: Array,
    keys: Array,
    values: Array,
    dout: Array,
    a: Array,
    b: Array,
    *,
    weight: Array,
    scale: float = 1.0,
    method: str = "exact",
    degree: int = 2,
    features: Callable[[Array, Array], tuple[Array, Array]] | tuple[Array, Array] | None = None,
    causal: bool = False,
    key_mask: Array | None = None,
) -> AttentionLoRAGrad:
    """Gradients of the adapter of an attention score map queries (weight + scale b a) keysᵀ.

    O = softmax(scores) values; given `dout`, the gradient of a loss with respect to O, returns those with respect to
    `a` and `b`. Nothing of the size of all scores is formed: memory is linear in L and M. It pays where no gradient of
    the activations is needed (a first adapted layer, a frozen stem); elsewhere dQ exists anyway.

    Args:
      queries: [..., L, d_q], float32, float64, bfloat16 or float16 (NumPy: float32, float64); the temperature is in
        it. Rotary positions, if any, are applied to none of it. Any strides.
      keys: [..., M, d_k]. values: [..., M, d_v]. dout: [..., L, d_v]. Same dtype as `queries`. Leading dimensions
        broadcast and are summed into the result; the last of them is that of heads, and fewer heads of keys and
        values, a divisor of the queries', serve groups of neighbouring query heads. A query row is left out by a zero
        row of `dout`.
      a: [r, d_k]. b: [d_q, r]. weight: [d_q, d_k]; any floating dtype.
      scale: factor of b a.
      method: "exact"; "chained": softmax from low-rank features, refused where the error is estimated above 0.5;
        "auto": chained where it is not and where it takes about half of the exact method's time or less, else exact.
      degree: even, >= 2: exp is cut after it and all monomials of the effective queries and the keys are its features;
        C(d_k + degree, degree) of them, at most 16384. An odd degree can turn a row sum negative.
      features: instead, a pair (U [..., L, k], V [..., M, k]) with U Vᵀ proportional to exp(scores) in each row, or a
        callable that makes it of (queries (weight + scale b a), keys less their mean), such as
        `functools.partial(positive_features, count=256)`.
      causal: query i sees keys 0 .. i; L = M.
      key_mask: [..., M] of bool, True where a key is seen; broadcasts with the keys. A row that sees none counts 0.

    Returns:
      AttentionLoRAGrad(da, db, error_bound): in the dtypes of `a` and `b`; error_bound is a float64 scalar, 0 for the
      exact method (rounding apart). For monomials it is 3 eta, eta the error of a softmax row at a bound of all
      |scores| after the mean key is taken off: the norms of queries and keys bound them, and those scores whose norms'
      product is too large are looked at, largest first. As a rule these are few, and the bound is the largest score.
      It assumes the worst of every score, so errors are usually far below. It bounds the score gradient row by row;
      `da` and `db` inherit it unless their sums cancel. For features it is the relative error of the score gradient in
      8 rows of each head.

    Raises:
      ValueError: an argument out of its range, shapes that do not fit, not finite, row sums of features that are not
      positive, an error estimate above 0.5 with method="chained". TypeError: not floating-point arrays of one dtype.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); sums in float32 (float64 for float64)
    over keys, in float64 over heads. Not differentiable. No dropout inside attention.
    Source: arXiv 2406.03136 (chained low-rank gradients), section 3 and theorem 1.3, in conformable order; tiles as in
    FlashAttention, arXiv 2205.14135. Deviations: the mean key is taken off; monomials instead of the polynomial method
    of Alman and Song; the chained gradient keeps the degree, where differentiating through features loses one.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 50, 8))  # [heads, length, width] each
      >>> a, b = np.ones((3, 8)), np.zeros((8, 3))
      >>> da, db, error_bound = lc.attention_lora_grad(q / 8, k, v, dout, a, b, weight=np.eye(8))
      >>> da.shape, db.shape, float(error_bound)
      ((3, 8), (8, 3), 0.0)
    """
    scale, degree = finite_number(_OP, "scale", scale), plain_int(degree)
    left, right = check_pair(_OP, "be", features) if isinstance(features, tuple) else (None, None)
    arrays = (queries, keys, values, dout, a, b, weight)
    options: dict[str, Any] = {"scale": scale, "method": method, "degree": degree, "causal": bool(causal)}
    if features is not None and left is None:
        _check(*arrays, left, right, key_mask, **options)
        if not callable(features):
            raise TypeError(f"{_OP}: `features` must be a pair, a callable or None, got {type(features).__name__}")
        left, right = check_pair(_OP, "return", features(*call(_OPERANDS, *arrays, key_mask, scale=scale)))
    return AttentionLoRAGrad(*call(_GRADIENT, *arrays, left, right, key_mask, **options))


# ---- contract and allocation ---------------------------------------------------------------------------------------


def _check(*arrays: Any, scale: float, method: str, degree: int, causal: bool) -> Heads:
    """`arrays`: those that the operator takes, in its order."""
    left, right, mask = arrays[7:]
    if method not in ("exact", "chained", "auto"):
        raise ValueError(f"{_OP}: `method` must be 'exact', 'chained' or 'auto', got {method!r}")
    heads = check_heads(_OP, arrays[:7], left, right, mask, causal)
    if method != "exact" and left is None:
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 2 or degree % 2:
            raise ValueError(
                f"{_OP}: `degree` must be even and >= 2, got {degree!r}; an odd degree can turn a row sum negative"
            )
        depth = arrays[1].shape[-1]
        if method == "chained" and _monomials(depth, degree) > MAX_FEATURES:
            raise ValueError(
                f"{_OP}: `degree` must give at most {MAX_FEATURES} monomials, got degree {degree} with d_k = {depth}; "
                "lower it, pass `features`, or use method='exact'"
            )
    return heads


def _monomials(depth: int, degree: int) -> int:
    """C(depth + degree, degree); depth may be symbolic."""
    count = 1
    for k in range(1, degree + 1):
        count = count * (depth + k) // k
    return count


def _outputs(*arrays: Any, **_: Any) -> Triplet:
    a, b = arrays[4:6]
    return empty(a, tuple(a.shape), dtype_name(a)), empty(b, tuple(b.shape), dtype_name(b)), empty(a, (), "float64")


# ---- computation ---------------------------------------------------------------------------------------------------


def _gradient(*arrays: Any, scale: float, method: str, degree: int, causal: bool) -> Triplet:
    heads = _check(*arrays, scale=scale, method=method, degree=degree, causal=causal)
    keys, a, b = arrays[1], arrays[4], arrays[5]
    named = dict(zip(NAMES, arrays, strict=False))
    problem = {"mask": heads.mask, "scale": scale, "causal": causal}

    def solve(kernel: Callable[..., Any], *out: Array, **options: Any) -> Any:
        return call_finite(_OP, kernel, *out, heads.arrays, arrays=named, **problem, **options)

    wanted = method == "chained" or (method == "auto" and _pays(heads, degree, causal))
    error = _error(solve, heads, keys.shape[-1], degree) if wanted else 0.0
    chained = wanted and (method == "chained" or error <= MAX_ERROR)
    if chained and not error <= MAX_ERROR:
        raise ValueError(
            f"{_OP}: `method`='chained' must have an error estimate of at most {MAX_ERROR}, got {error:.2g}; "
            "scale the scores down, take more features, or use method='auto' or 'exact'"
        )
    da, db = empty(a, tuple(a.shape), "float64"), empty(b, tuple(b.shape), "float64")
    if chained:
        solve(_core.attention_chained, da, db, degree=degree, left=heads.left, right=heads.right)
    else:
        solve(_core.attention_exact, da, db)
    return converted(da, a), converted(db, b), _scalar(error if chained else 0.0, a)


def _pays(heads: Heads, degree: int, causal: bool) -> bool:
    """Whether the chain takes at most about half of the exact method's time: by the multiply-adds of a head."""
    (length, _), (count, depth) = heads.arrays[0].shape[-2:], heads.arrays[1].shape[-2:]
    faces, rank = heads.arrays[2].shape[-1] + 1, heads.arrays[5].shape[0]
    features = _monomials(depth, degree) if heads.left is None else heads.left.shape[-1]
    scores = length * count / (2 if causal else 1)
    chain = (length + count) * features * faces * (1 + 2 * rank)
    return bool(2 * CHAIN_COST[causal] * chain <= scores * (3 * depth + faces))


def _error(solve: Callable[..., Any], heads: Heads, depth: int, degree: int) -> float:
    """The estimate, made before computing."""
    if heads.left is not None:
        return float(solve(_core.attention_sampled_error, left=heads.left, right=heads.right))
    if _monomials(depth, degree) > MAX_FEATURES:
        return float("inf")
    largest = solve(_core.attention_score_bound, enough=_core.taylor_score(MAX_ERROR, degree))
    return float(_core.taylor_error(largest, degree))


def _scalar(value: float, like: Array) -> Array:
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return np.float64(value)


def _heads(*arrays: Any, **_: Any) -> Heads:
    return check_heads(_OP, arrays[:7], None, None, arrays[7], False)


def _operands(*arrays: Any, **_: Any) -> tuple[Array, Array]:
    queries, keys = arrays[:2]
    lead = _heads(*arrays).lead
    dtype = "float64" if dtype_name(queries) == "float64" else "float32"
    effective, centered = (empty(queries, (*lead, x.shape[-2], keys.shape[-1]), dtype) for x in (queries, keys))
    return effective, centered


def _fill_operands(out: tuple[Array, Array], *arrays: Any, scale: float) -> None:
    heads = _heads(*arrays)
    options: dict[str, Any] = {"arrays": dict(zip(NAMES, arrays[:7], strict=False)), "mask": heads.mask, "scale": scale}
    call_named(_OP, _core.attention_operands, *out, heads.arrays, **options)


_ARRAYS = "Tensor queries, Tensor keys, Tensor values, Tensor dout, Tensor a, Tensor b, Tensor weight"

_GRADIENT = Op(
    f"attention_lora_grad({_ARRAYS}, Tensor? left=None, Tensor? right=None, Tensor? key_mask=None, *, float scale, "
    "str method, int degree, bool causal) -> (Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    kernel=_gradient,
    fills=False,
)
_OPERANDS = Op(
    f"attention_operands({_ARRAYS}, Tensor? key_mask=None, *, float scale) -> (Tensor, Tensor)",
    check=_heads,
    outputs=_operands,
    kernel=_fill_operands,
)
declare("chain_lr", _GRADIENT, _OPERANDS)
