"""The exact gradient of an attention adapter: shapes, heads, masks, layouts, levels, threads."""

from __future__ import annotations

from typing import Any

import chain_cases
import lowrank_core
import numpy as np
import pytest
import torch
from chain_cases import PAD, SCORE_COLS, SCORE_ROWS, assert_exact, attention, exact, grad, relative
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from testing import checks, layouts, machine, tolerance
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 2, SCORE_ROWS - 1, SCORE_ROWS, SCORE_ROWS + 1, PAD - 1, PAD + 1, 97, SCORE_COLS, SCORE_COLS + 1, 523)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_lengths(length: int, causal: bool, dtype: torch.dtype) -> None:
    assert_exact(attention(length, dtype=dtype), causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", ((1, 1, 1, 1), (3, 16, 17, 2), (33, 15, 1, 5), (8, 40, 31, 9), (64, 64, 64, 8)), ids=str
)
def test_widths_and_dtypes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_exact(attention(70, 50, *sizes, dtype=dtype, size=0.05))


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_level(level: str, dtype: torch.dtype) -> None:
    with machine.isa(level):
        for length, causal in ((45, True), (SCORE_COLS + 3, False)):
            assert_exact(attention(length, dtype=dtype, d_k=17), causal=causal)


@pytest.mark.parametrize("size", (0.01, 1.0, 30.0))
def test_scores_of_any_size(size: float) -> None:
    """Weights of one key only, and running maxima that grow: nothing overflows."""
    for dtype in DTYPES[:2]:
        assert_exact(attention(300, dtype=dtype, size=size))


def test_growing_scores_rescale_what_was_summed() -> None:
    t = attention(3 * SCORE_COLS, dtype=torch.float32, size=1.0)
    t["keys"] *= torch.linspace(0.01, 3.0, 3 * SCORE_COLS).unsqueeze(-1)
    assert_exact(t)


def test_masked_keys() -> None:
    t = attention(67)
    mask = torch.from_numpy(np.random.default_rng(0).random(67) < 0.6)
    mask[0] = True
    assert_exact(t, key_mask=mask, causal=True)
    assert_exact(t, key_mask=mask)
    t["keys"][~mask] = 1e6  # whatever stands there
    t["values"][~mask] = -1e6
    found = grad(t, key_mask=mask)
    kept = dict(t, keys=t["keys"][mask], values=t["values"][mask])
    assert relative(found, exact(kept)) <= tolerance.gamma(67 * 67, torch.float64)


@pytest.mark.parametrize("method", ("exact", "chained"))
def test_a_row_that_sees_no_key_counts_nothing(method: str) -> None:
    t = attention(9, size=0.01)
    none = grad(t, key_mask=torch.zeros(9, dtype=torch.bool), method=method)
    assert not none.da.any() and not none.db.any()
    first_hidden = torch.ones(9, dtype=torch.bool)
    first_hidden[0] = False  # causal: row 0 sees nothing
    found = grad(t, key_mask=first_hidden, causal=True, method=method, degree=8)
    later = {k: (v[1:] if v.shape[0] == 9 else v) for k, v in t.items()}
    rounding = tolerance.gamma(81, torch.float64)
    assert relative(found, exact(later, causal=True)) <= rounding + float(found.error_bound)


@pytest.mark.parametrize("method", ("exact", "chained"))
def test_heads_are_summed(method: str) -> None:
    """Batches broadcast, groups of query heads share keys, and a mask has the batch's shape."""
    cases: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((4,), (1,)),
        ((2, 4), (2, 2)),
        ((2, 6), (1, 3)),
        ((5,), ()),
        ((), ()),
    )
    for lead, kv_lead in cases:
        t = attention(33, lead=lead, kv_lead=kv_lead, size=0.01)
        mask = torch.ones(*kv_lead[:-1], *([1] if kv_lead else []), 33, dtype=torch.bool)
        mask[..., -5:] = False
        for causal in (False, True):
            found = grad(t, scale=0.4, causal=causal, key_mask=mask, method=method, degree=8)
            rounding = tolerance.gamma(33 * 33, torch.float64)
            allowed = rounding + (0.0 if method == "exact" else float(found.error_bound))
            assert relative(found, exact(t, scale=0.4, causal=causal, key_mask=mask)) <= allowed, (lead, kv_lead)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("method", ("exact", "chained"))
def test_any_strides(layout: str, method: str) -> None:
    t = attention(21, lead=(2,), size=0.01)
    bent = {k: layouts.LAYOUTS[layout](v) for k, v in t.items()}
    plain, found = grad(t, method=method), grad(bent, method=method)
    assert relative(found, (plain.da, plain.db)) <= tolerance.gamma(21 * 21, torch.float64)


@pytest.mark.parametrize("method", ("exact", "chained"))
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_threads_do_not_change_a_bit(method: str, dtype: torch.dtype) -> None:
    for lead in ((), (3, 2)):
        t = attention(1100 if not lead else 130, lead=lead, dtype=dtype, size=0.002)
        for causal in (False, True):
            results = []
            for count in (1, 2, 3):
                with machine.threads(count):
                    results.append(tuple(grad(t, method=method, causal=causal)))
            assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


@pytest.mark.parametrize("method", ("exact", "chained"))
def test_numpy_equals_torch(method: str) -> None:
    t = attention(40, lead=(2,), dtype=torch.float32, size=0.01)
    mask = torch.ones(40, dtype=torch.bool)
    mask[3] = False
    from_torch = grad(t, method=method, key_mask=mask)
    from_numpy = grad({k: v.numpy() for k, v in t.items()}, method=method, key_mask=mask.numpy())
    assert isinstance(from_numpy.da, np.ndarray) and isinstance(from_numpy, lowrank_core.AttentionLoRAGrad)
    assert checks.same_bits(tuple(from_torch[:2]), tuple(from_numpy[:2]))
    assert float(from_torch.error_bound) == float(from_numpy.error_bound)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4))
def test_any_shape(length: int, count: int, d_k: int, d_v: int, rank: int) -> None:
    assert_exact(attention(length, count, d_k=d_k, d_v=d_v, rank=rank))


def test_empty_problems() -> None:
    heads: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = [
        ((0,), None), ((2, 0), None), ((0, 2), None), ((0,), (2,)), ((3, 0), (3, 2)), ((3, 0), (3, 1)),
        ((0, 4), (0, 2)),
    ]  # fmt: skip
    sizes: list[dict[str, int]] = [{"count": 0}, {"d_q": 0}, {"d_k": 0}, {"d_v": 0}, {"rank": 0}]
    problems = [
        attention(0),
        *(attention(5, lead=q, kv_lead=k) for q, k in heads),
        *(attention(4, **s, size=1e-3) for s in sizes),
    ]
    for t in problems:
        for method in ("exact", "chained", "auto"):
            for arrays in (t, {name: a.numpy() for name, a in t.items()}):
                found = grad(arrays, method=method)
                assert found.da.shape == t["a"].shape and found.db.shape == t["b"].shape
                assert not found.da.any() and not found.db.any()


def test_no_heads_of_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="`keys` must have a number of heads that divides the 4 of `queries`, got 0"):
        grad(attention(5, lead=(4,), kv_lead=(0,)))


@pytest.mark.parametrize(("scale", "error"), [(None, TypeError), ("two", TypeError), (float("nan"), ValueError)])
def test_scales_that_are_no_numbers(scale: Any, error: type[Exception]) -> None:
    x, w, a, b = (torch.ones(shape) for shape in ((3, 4), (5, 4), (2, 4), (5, 2)))
    calls = {
        "attention_lora_grad": lambda: grad(attention(5), scale=scale),
        "lora_linear": lambda: lowrank_core.lora_linear(x, w, a, b, scale=scale),
        "usv_linear": lambda: lowrank_core.usv_linear(x, w, b, torch.eye(2), a.mT, scale=scale),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=f"{name}: `scale` must be a .*number, got"):
            call()


def test_features_that_are_no_pair() -> None:
    t = attention(5)
    for features, message in (
        ((t["a"],), "must be a pair"),
        ((t["a"],) * 3, r"must be a pair \(U, V\), got 3 arrays"),
        (lambda q, k: 5, r"must return a pair \(U, V\), got int"),
        (5, "must be a pair, a callable or None, got int"),
    ):
        with pytest.raises(TypeError, match=f"attention_lora_grad: `features` {message}"):
            grad(t, features=features, method="chained")
    with pytest.raises(TypeError, match="chain_matmul: `matrices` must be a list of matrices, got NoneType"):
        lowrank_core.chain_matmul(None)


def test_non_finite_arguments_are_named() -> None:
    for name in ("queries", "keys", "values", "dout", "a", "b", "weight"):
        for value in (float("nan"), float("inf")):
            t = attention(20)
            t[name][1, 1] = value
            for method in ("exact", "chained"):
                with pytest.raises(ValueError, match=f"attention_lora_grad: `{name}` must be finite"):
                    grad(t, method=method)


def _changed(**changes: Any) -> dict[str, Tensor]:
    return attention(6, size=0.01) | changes


def test_refusals() -> None:
    ones = torch.ones(6, dtype=torch.bool)
    for tensors, options, error, message in (
        (_changed(keys=torch.ones(6, 6)), {}, TypeError, "`keys` must be float64 as `queries`, got float32"),
        (_changed(values=torch.ones(5, 4).double()), {}, ValueError, r"`values` must be .* got shape \[5, 4\]"),
        (_changed(dout=torch.ones(6, 3).double()), {}, ValueError, r"`dout` must be .* got shape \[6, 3\]"),
        (_changed(weight=torch.ones(6, 5)), {}, ValueError, r"`weight` must be \[d_q, d_k\], here \[5, 6\]"),
        (_changed(a=torch.ones(1, 3, 6)), {}, ValueError, r"`a` must be \[r, d_k\]"),
        (_changed(b=torch.ones(5, 4)), {}, ValueError, r"`b` must be \[d_q, r\], here \[5, 3\]"),
        (attention(6, 5), {"causal": True}, ValueError, "`causal` must come with as many keys as queries, got 5 and 6"),
        (
            attention(6, lead=(4,), kv_lead=(3,)),
            {},
            ValueError,
            "`keys` must have a number of heads that divides the 4",
        ),
        (attention(6, lead=(2, 4), kv_lead=(3, 4)), {}, ValueError, ".* must have leading dimensions that broadcast"),
        (_changed(), {"key_mask": ones[1:]}, ValueError, r"`key_mask` must be \[..., M\] with M = 6"),
        (_changed(), {"key_mask": ones.int()}, TypeError, "`key_mask` must be bool, got torch.int32"),
        (_changed(), {"method": "fast"}, ValueError, "`method` must be 'exact', 'chained' or 'auto', got 'fast'"),
        (_changed(), {"method": "chained", "degree": 3}, ValueError, "`degree` must be even and >= 2, got 3; an odd"),
        (_changed(), {"method": "chained", "features": 3}, TypeError, "`features` must be a pair, a callable or None"),
        (_changed(), {"features": (torch.ones(6, 2), torch.ones(5, 2))}, ValueError, "`features` must be"),
        (attention(6, d_k=200, size=0.001), {"method": "chained"}, ValueError, "`degree` must give at most 16384"),
    ):
        with pytest.raises(error, match=f"attention_lora_grad: {message}"):
            grad(tensors, **options)


def test_it_is_not_differentiable() -> None:
    t = attention(5)
    t["a"].requires_grad_()
    with pytest.raises(NotImplementedError, match="attention_lora_grad: has no derivative"):
        grad(t).da.sum().backward()


def test_the_reference_is_autograd_through_naive_attention() -> None:
    """Two ways to the same: by the formula p = f ∘ (dP - rho) as well."""
    t = attention(12)
    q, k, v, g, a, b, w = (t[n] for n in ("queries", "keys", "values", "dout", "a", "b", "weight"))
    f = (q @ (w + 0.7 * b @ a) @ k.mT).softmax(-1)
    dp = g @ v.mT
    p = f * (dp - (f * dp).sum(-1, keepdim=True))
    by_formula = (0.7 * b.mT @ q.mT @ p @ k, 0.7 * q.mT @ p @ k @ a.mT)
    assert relative(by_formula, exact(t, scale=0.7)) <= tolerance.gamma(144, torch.float64)
    assert chain_cases.relative(grad(t, scale=0.7), by_formula) <= tolerance.gamma(144, torch.float64)
