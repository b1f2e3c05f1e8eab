"""Merged and extracted adapters against the dense decomposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from start_cases import separated
from testing import cases, tolerance
from torch import Tensor

M, N = 12, 16
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def pair(rank: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return cases.gaussian(M, rank, seed=seed).to(dtype), cases.gaussian(rank, N, seed=seed + 1).to(dtype)


def dense(pairs: list[tuple[Tensor, Tensor]], weights: list[float]) -> Tensor:
    return torch.stack([w * b.double() @ a.double() for (b, a), w in zip(pairs, weights, strict=True)]).sum(0)


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def gap(matrix: Tensor, rank: int) -> float:
    """‖a‖ over the distance of the values that the cut divides: how much an error of a turns its best approximation."""
    s = torch.linalg.svdvals(matrix.double())
    return float(s[0] / (s[rank - 1] - s[rank])) if rank < len(s) else 1.0


def bound(matrix: Tensor, rank: int, dtype: torch.dtype, parts: float) -> float:
    """`parts`: the sum of the norms that add up to the matrix, which is what roundings are relative to."""
    wide = tolerance.factor_dtype(dtype)
    return 4 * tolerance.gamma(2 * (M + N), wide) * parts * gap(matrix, rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_merger_is_the_best_approximation_of_the_sum(rank: int, dtype: torch.dtype) -> None:
    pairs, weights = [pair(2, 0, dtype), pair(1, 7, dtype), pair(3, 9, dtype)], [0.5, -2.0, 1.25]
    b, a = adapters.merge_adapters(pairs, weights, rank)
    total = dense(pairs, weights)
    parts = sum(abs(w) * tolerance.norm(b) * tolerance.norm(a) for (b, a), w in zip(pairs, weights, strict=True))
    assert b.dtype == a.dtype == tolerance.factor_dtype(dtype)
    assert tuple(b.shape) == (M, rank) and tuple(a.shape) == (rank, N)
    error = (b.double() @ a.double() - best(total, rank)).abs().max()
    assert error <= bound(total, rank, dtype, parts)
    lengths = torch.linalg.vector_norm(b.double(), dim=0), torch.linalg.vector_norm(a.double(), dim=1)
    torch.testing.assert_close(*lengths, rtol=bound(total, rank, dtype, parts), atol=bound(total, rank, dtype, parts))


def test_dtypes_may_differ_and_the_inputs_stay() -> None:
    pairs = [pair(2, 0, torch.bfloat16), pair(2, 7, torch.float64)]
    before = [x.clone() for one in pairs for x in one]
    b, _ = adapters.merge_adapters(pairs, [1, 1], 4)
    assert b.dtype == torch.float64
    assert all(torch.equal(x, y) for x, y in zip(before, (x for one in pairs for x in one), strict=True))


def test_an_adapter_and_its_negative_are_zero() -> None:
    one = pair(3, 0)
    b, a = adapters.merge_adapters([one, one], [1.0, -1.0], 2)
    assert (b @ a).abs().max() <= tolerance.gamma(12, torch.float64) * tolerance.norm(one[0]) * tolerance.norm(one[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extraction_is_the_best_approximation_of_the_difference(dtype: torch.dtype) -> None:
    base, change = cases.gaussian(M, N, seed=5).to(dtype), separated(M, N)
    tuned = (base.double() + change).to(dtype)
    b, a = adapters.extract_lora(base, tuned, 2, seed=3)
    exact = tuned.double() - base.double()
    assert b.dtype == tolerance.factor_dtype(dtype) and tuple(b.shape) == (M, 2) and tuple(a.shape) == (2, N)
    parts = tolerance.norm(base) + tolerance.norm(tuned)
    assert (b.double() @ a.double() - best(exact, 2)).abs().max() <= bound(exact, 2, dtype, parts)
    again = adapters.extract_lora(base, tuned, 2, seed=3)
    assert torch.equal(b, again[0]) and torch.equal(a, again[1])


NAN = torch.full((M, 2), torch.nan), torch.ones(2, N)


@pytest.mark.parametrize(
    ("pairs", "weights", "rank", "match"),
    [
        ([], [], 1, "`pairs` must have one or more, got 0"),
        ([pair(2, 0)], [1.0, 2.0], 1, "`weights` must be 1 numbers, one for each pair"),
        ([pair(2, 0)], [float("nan")], 1, "`weights` must be 1 numbers"),
        ([pair(2, 0)], [1.0], 0, "`rank` must be an int >= 1, got 0"),
        ([pair(2, 0), pair(1, 0)], [1, 1], 4, r"`rank` must be at most 3 = min\(m, n, sum of ranks\), got 4"),
        (
            [pair(2, 0), pair(2, 0)[::-1]],
            [1, 1],
            1,
            r"`pairs` must be \[12, r\] and \[r, 16\] as the first, got \[2, 16\]",
        ),
        ([(torch.ones(M), torch.ones(1, N))], [1], 1, "`pairs` must be"),
        ([(torch.ones(M, 2), torch.ones(3, N))], [1], 1, "`pairs` must be"),
        ([NAN], [1], 1, "`pairs` must be floating-point and finite"),
        ([(torch.ones(M, 1, dtype=torch.int64), torch.ones(1, N))], [1], 1, "must be floating-point and finite"),
        ([({"x": torch.ones(2)}, {})], [1], 1, "`pairs` must have factors of LoRA alone, got 'x'; leave it out"),
        ([({"m.lora_A.weight": torch.ones(1, 2)}, {})], [1], 1, "got lora_A alone of m"),
        ([({}, {"use_dora": True})], [1], 1, "must have plain LoRA adapters, got one with use_dora"),
    ],
)
def test_mergers_that_are_refused(pairs: Any, weights: Any, rank: int, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^merge_adapters: .*{match}"):
        adapters.merge_adapters(pairs, weights, rank)


@pytest.mark.parametrize(
    ("key", "pairs", "weights"), [("pairs", None, [1.0]), ("weights", [], 1.0), ("pairs", "b", [1.0])]
)
def test_what_is_no_list_is_refused(key: str, pairs: Any, weights: Any) -> None:
    with pytest.raises(TypeError, match=f"^merge_adapters: `{key}` must be a list, got"):
        adapters.merge_adapters(pairs, weights, 1)


def test_extractions_that_are_refused() -> None:
    base = torch.zeros(M, N)
    for args, match in [
        ((base, torch.zeros(N, M), 1), r"`tuned` must be \[12, 16\] as `base`, got shape \[16, 12\]"),
        ((base, base, 0), "`rank` must be an int >= 1, got 0"),
        ((base, base, 13), r"`rank` must be at most 12 = min\(m, n\), got 13"),
        ((torch.zeros(3), torch.ones(3), 1), r"`base` must be a matrix, got \[3\]"),
        ((base, base / 0, 1), "`tuned` must have finite differences from `base`, got NaN or infinity in the matrix"),
        (({"x.weight": base}, {"x.weight": base}, 1), "`tuned` must differ from `base` in a matrix, got none"),
        (({}, {"x.weight": base}, 1), "`base` must have every tensor of `tuned`, got one without 'x.weight'"),
        (({"x.weight": base}, {"x.weight": base.mT}, 1), r"'x.weight' of `tuned` must be \[12, 16\]"),
        (
            ({"x.weight": base}, {"x.weight": base / 0}, 1),
            ".* finite differences from `base`, got NaN or infinity in x.weight",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^extract_lora: {match}"):
            adapters.extract_lora(*args)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be two tensors or two state dicts, got Tensor and dict"):
        adapters.extract_lora(base, {}, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="must be tuples of two tensors or of a state dict and its configuration"):
        adapters.merge_adapters([pair(2, 0), 3], [1, 1], 1)  # type: ignore[list-item]


# ---- by name -------------------------------------------------------------------------------------------------------


def named(rank: int, seed: int, **config: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    b, a = pair(rank, seed, torch.bfloat16)
    return {"m.up.lora_A.weight": a, "m.up.lora_B.weight": b}, {"r": rank, "lora_alpha": 2 * rank, **config}


def test_scales_count_with_the_weights() -> None:
    both = [named(2, 0, use_rslora=True), named(3, 7, alpha_pattern={"up": 6.0}, lora_alpha=100)]
    state, config = adapters.merge_adapters(both, [1.0, 0.5], 5)
    plain = [(one["m.up.lora_B.weight"], one["m.up.lora_A.weight"]) for one, _ in both]
    b, a = adapters.merge_adapters(plain, [4 / 2**0.5, 0.5 * 6 / 3], 5)
    close = bound(b @ a, 5, torch.float32, sum(4 * tolerance.norm(x) * tolerance.norm(y) for x, y in plain))
    product = state["m.up.lora_B.weight"] @ state["m.up.lora_A.weight"]
    torch.testing.assert_close(product, b @ a, rtol=0, atol=close)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (5, 5, ["m.up"])


def test_a_module_of_one_adapter_alone_and_smaller_ranks() -> None:
    one, other = named(2, 0), named(1, 7)
    other[0].update(
        {"m.down.lora_A.default.weight": torch.ones(1, 4), "m.down.lora_B.default.weight": torch.ones(6, 1)}
    )
    state, config = adapters.merge_adapters([one, other], [1.0, 1.0], 3)
    assert tuple(state["m.down.lora_B.weight"].shape) == (6, 1)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"m.down": 1} and config["r"] == 3
    product = state["m.down.lora_B.weight"] @ state["m.down.lora_A.weight"]
    rounding = tolerance.gamma(16, torch.float32)
    torch.testing.assert_close(product, torch.full((6, 4), 2.0), rtol=0, atol=2 * rounding)


def test_what_no_adapter_holds_is_told() -> None:
    base = {"up.weight": torch.zeros(4, 6), "norm.weight": torch.zeros(6), "steps": torch.zeros(1, dtype=torch.int64)}
    tuned = {key: x + 1 for key, x in base.items()}
    with pytest.warns(RuntimeWarning, match=r"^extract_lora: 1 tensors changed .*: norm.weight$"):
        state, _ = adapters.extract_lora(base, tuned, 2)
    assert sorted(state) == ["base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"]


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    state, config = adapters.merge_adapters([named(2, 0)], [1.0], 2)
    adapters.save_adapter(tmp_path / "new" / "folder", state, config)
    read = adapters.read_adapter(tmp_path / "new" / "folder")
    assert read.config == {"peft_type": "LORA", **config}
    assert state.keys() == read.state.keys() and all(torch.equal(x, read.state[key]) for key, x in state.items())
    with pytest.raises(FileNotFoundError):
        adapters.read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "tensors", "name"),
    [(b"{", b"", "adapter_config.json"), (b"{}", b"123", "adapter_model.safetensors")],
)
def test_files_that_cannot_be_read_are_named(config: bytes, tensors: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(config)
    (tmp_path / "adapter_model.safetensors").write_bytes(tensors)
    with pytest.raises(ValueError, match=f"^read_adapter: `folder` must hold what PEFT saves, got .*{name}: "):
        adapters.read_adapter(tmp_path)
