"""The bound of the largest score: never below it, whatever queries and keys are, and seldom a look at all scores."""

from __future__ import annotations

import pytest
import torch
from chain_cases import NAMES, PAD, SCORE_COLS, SCORE_ROWS, attention, exact, grad, normal, relative
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from testing import machine, tolerance
from torch import Tensor

SCALE = 0.7
ENOUGH = _core.taylor_score(0.5, 2)
ROUNDING = tolerance.gamma(90 * 90, torch.float64)
DTYPES = (torch.float32, torch.float64)
LENGTHS = (1, SCORE_ROWS + 1, PAD + 1, SCORE_COLS, SCORE_COLS + 1, 600)


def scores(t: dict[str, Tensor], *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """|scores| in float64, the mean of the seen keys taken off, 0 where a key is not seen."""
    q, k, a, b, w = (t[n].double() for n in ("queries", "keys", "a", "b", "weight"))
    seen = torch.ones(k.shape[-2], dtype=torch.bool) if mask is None else mask
    centered = k - k[..., seen, :].mean(-2, keepdim=True) if seen.any() else k
    found = (q @ (w + SCALE * b @ a) @ centered.mT).abs() * seen
    return found.tril() if causal else found


def bound(t: dict[str, Tensor], enough: float, *, causal: bool = False, mask: Tensor | None = None) -> float:
    arrays = [t[n] for n in (*NAMES[:4], "weight", "a", "b")]
    seen = None if mask is None else mask.to(torch.uint8)
    return _core.attention_score_bound(arrays, mask=seen, scale=SCALE, causal=causal, enough=enough)


def assert_bound(t: dict[str, Tensor], enough: float, **options: object) -> None:
    """A bound that is at most enough, or a score that is larger than that."""
    largest, found = float(scores(t, **options).max()), bound(t, enough, **options)  # type: ignore[arg-type]
    q, k = (float(t[n].double().norm(dim=-1).max()) for n in ("queries", "keys"))
    rounding = 8 * tolerance.gamma(t["keys"].shape[-1] + 8, t["queries"].dtype) * q * 2 * k * 10
    if found <= enough:
        assert largest <= found
    else:
        assert largest > enough - rounding
        assert found <= largest + rounding


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(length: int, causal: bool, dtype: torch.dtype) -> None:
    t = attention(length, dtype=dtype, size=0.1)
    largest = float(scores(t, causal=causal).max())
    for share in (0.5, 0.99, 1.01, 1.5, 10.0):
        assert_bound(t, share * largest, causal=causal)


@pytest.mark.parametrize("level", _core.isa_levels())
def test_every_level_and_any_threads(level: str) -> None:
    for dtype in DTYPES:
        t = attention(700, dtype=dtype, size=0.1)
        largest = float(scores(t).max())
        found = []
        with machine.isa(level):
            for count in (1, 2, 3):
                with machine.threads(count):
                    found.append(bound(t, 1.1 * largest))
        assert found[0] == found[1] == found[2]
        assert largest <= found[0] <= 1.1 * largest


@given(
    st.integers(1, 80), st.integers(1, 300), st.integers(1, 9), st.floats(0.3, 3.0), st.booleans(), st.integers(0, 99)
)
def test_any_shape_and_mask(length: int, count: int, d_k: int, share: float, masked: bool, seed: int) -> None:
    t = attention(length, count, d_k=d_k, seed=seed, size=0.1)
    mask = None
    if masked:
        mask = normal(count, seed=seed + 50) < 0.3
        t["keys"][~mask] *= 1e3  # whatever stands there
    assert_bound(t, share * float(scores(t, mask=mask).max()) + 1e-300, mask=mask)


@given(st.integers(0, 599), st.integers(0, 599), st.booleans(), st.integers(0, 99))
def test_one_large_pair_in_a_long_sequence(i: int, j: int, causal: bool, seed: int) -> None:
    """Alone in two ways: the only long vectors, or two of ordinary length that alone point the same way."""
    for hidden in (False, True):
        t = attention(600, d_q=6, d_k=6, seed=seed, size=0.02)
        t["weight"], t["b"] = torch.eye(6).double(), torch.zeros(6, 3).double()
        if hidden:  # queries and keys in two planes at right angles, but for one of each
            t["queries"][:, :3], t["keys"][:, 3:] = 0.0, 0.0
            t["queries"] *= 3.0 / t["queries"].norm(dim=-1, keepdim=True)
            t["keys"] /= t["keys"].norm(dim=-1, keepdim=True)
        t["keys"][:, 0] = 0.0
        t["queries"][i] = torch.tensor([1.0, 0, 0, 0, 0, 0]) * (2.0 if hidden else 10.0)
        t["keys"][j] = torch.tensor([1.0, 0, 0, 0, 0, 0])
        seen = not causal or j <= i
        largest = float(scores(t, causal=causal).max())
        assert (largest > ENOUGH) == seen
        found = bound(t, ENOUGH, causal=causal)
        assert (found > ENOUGH) == seen and (seen or found >= largest)
        if seen:
            with pytest.raises(ValueError, match=r"`method`='chained' must have an error estimate of at most 0.5"):
                grad(t, scale=SCALE, method="chained", causal=causal)
            auto = grad(t, scale=SCALE, method="auto", causal=causal)
            assert torch.equal(auto.da, grad(t, scale=SCALE, causal=causal).da) and float(auto.error_bound) == 0.0


@given(st.floats(0.05, 0.74), st.booleans(), st.integers(0, 1000), st.sampled_from(("normal", "spikes", "two values")))
def test_the_error_never_exceeds_its_bound(largest: float, causal: bool, seed: int, kind: str) -> None:
    t = attention(90, seed=seed, size=1.0)
    if kind == "spikes":  # most scores are tiny, a few are the largest
        t["keys"][normal(90, seed=seed).abs() < 2.0] *= 0.01
    if kind == "two values":  # every score is as large as any: what the estimate assumes
        t["queries"] = t["queries"][:1].expand(90, -1) * normal(90, 1, seed=seed).sign()
        t["keys"] = t["keys"][:1].expand(90, -1) * normal(90, 1, seed=seed + 1).sign()
    size = scores(t).max()
    t["queries"] = t["queries"] * (largest / size if size > 0 else 0.0)
    found = grad(t, scale=SCALE, method="chained", causal=causal)
    expected, share = exact(t, scale=SCALE, causal=causal), float(found.error_bound) + ROUNDING
    if kind != "two values":  # where da and db hang on a single number, a sum that may cancel
        assert relative(found, expected) <= share
    for error, magnitude in zip((found.da - expected[0], found.db - expected[1]), magnitudes(t, causal), strict=True):
        assert float(error.norm()) <= share * magnitude
    assert share >= _core.taylor_error(float(scores(t, causal=causal).max()), 2)


def magnitudes(t: dict[str, Tensor], causal: bool) -> tuple[float, float]:
    """What da and db could be if nothing cancelled: the sums of |p| in each row, times the longest key."""
    q, k, v, g, a, b, w = (t[n] for n in (*NAMES, "weight"))
    kept = k - k.mean(-2, keepdim=True)
    s = q @ (w + SCALE * b @ a) @ kept.mT
    f = (s.masked_fill(torch.ones_like(s).triu(1).bool(), -torch.inf) if causal else s).softmax(-1)
    p = f * (g @ v.mT - (f * (g @ v.mT)).sum(-1, keepdim=True))
    rows = SCALE * p.abs().sum(-1)
    da = float((rows * (q @ b).norm(dim=-1)).sum() * kept.norm(dim=-1).max())
    db = float((rows * q.norm(dim=-1)).sum() * (kept @ a.mT).norm(dim=-1).max())
    return da, db


def test_a_loose_bound_refuses_nothing() -> None:
    """Norms that say nothing: queries and keys in planes at right angles, however long they are."""
    t = attention(600, d_q=6, d_k=6, size=1.0)
    t["weight"], t["b"] = torch.eye(6).double(), torch.zeros(6, 3).double()
    t["queries"][:, :3], t["keys"][:, 3:] = 0.0, 0.0
    t["queries"][:, 0] = 0.001 * t["queries"][:, 4]
    found = grad(t, scale=SCALE, method="chained")
    assert relative(found, exact(t, scale=SCALE)) <= float(found.error_bound) <= 0.5


def test_the_estimate_is_that_of_the_largest_score_where_few_scores_decide_it() -> None:
    t = attention(2000, d_q=8, d_k=8, d_v=8, size=1.0)
    t["queries"] *= 0.5 / scores(t).max()
    estimate = float(grad(t, scale=SCALE, method="chained").error_bound)
    exactly = _core.taylor_error(0.5, 2)
    assert exactly * (1 - ROUNDING) <= estimate <= exactly * (1 + ROUNDING)


def test_no_scores() -> None:
    for t in (attention(0), attention(5, 0), attention(5, lead=(0,))):
        assert bound(t, ENOUGH) == 0.0
    t = attention(5)
    assert bound(t, ENOUGH, mask=torch.zeros(5, dtype=torch.bool)) == 0.0
