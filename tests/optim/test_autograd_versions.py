"""Autograd must see every step: a graph made before it holds weights that are no more."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import lowrank_core as lc
import pytest
import torch
from lowrank_core import _core
from lowrank_core.optim import SCALE, FloraAdamW, FrugalAdamW, GaLoreAdamW, SinkGD, devices, fused
from lowrank_core.optim.loop import LowRankOptimizer
from optim_cases import draw
from torch import Tensor, nn

PACKAGE = Path(lc.__file__).parent

# Every kernel of the core that the package calls: which of its arguments it changes that existed before the call.
# The others write to arrays that their caller has just made or to the state of an optimizer, or read only.
WRITES: dict[str, tuple[str, ...]] = {
    "subspace_update": ("params", "exp_avg", "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales", "limits"),
    "kalman_diag_step_": ("theta", "p"),
    "dct_select_feedback": ("residual",),
}
PRIVATE = {  # PATHS and the test of lines call them
    "adamw_step": ("params", "exp_avg", "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales"),
    "lines_step": ("params",),
    "selected_step": ("params", "exp_avg", "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales"),
    "sketched_step": ("params", "exp_avg", "exp_avg_scales", "row_means", "col_means"),
}
FRESH = {
    "adapter_gradient", "adapter_linear", "are_ordinary", "array_refusal", "attention_chained", "attention_exact",
    "attention_operands", "attention_sampled_error", "attention_score_bound", "augment_truncate", "build_info",
    "chain_matmul", "convert", "count_step", "dct_project_back", "dct_project_back_list", "dct_select",
    "dct_select_feedback_list", "dct_transform", "decode_moment", "dequantize_int4",
    "dequantize_int4_list",
    "encode_moment", "factored_directions", "factored_svd", "fast_bfloat16",
    "follow_step", "gaussian", "gemm", "int4_project", "kalman_diag_gain",
    "kalman_diag_step", "mkl_roots", "newton_schulz", "nonfinite", "norms", "num_threads", "orthonormalize",
    "overlaps_itself",
    "qb", "quantize_int4", "range_finder", "rotate_moments", "round_stochastic", "rsvd", "share_memory",
    "scaled_gradients", "subspace_project",
    "taylor_error", "taylor_score",
}  # fmt: skip


def kernels_called() -> set[str]:
    """The names of all functions of `_core` that a module of the package, its command line aside, refers to."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_core":
                    names.add(node.attr)
    return {name for name in names if not isinstance(getattr(_core, name), type)}


def test_every_kernel_is_known_to_write_fresh_arrays_or_to_count() -> None:
    assert kernels_called() == WRITES.keys() | PRIVATE.keys() | FRESH, (
        "say of a new kernel which of its arguments it changes"
    )


def _rows(count: int = 2) -> list[Tensor]:
    return [draw(6, 8, seed=seed) for seed in range(count)]


def _subspace_step() -> list[Tensor]:
    weights, bases = _rows(), [torch.eye(6, 2) for _ in range(2)]
    first = [torch.zeros(2, 8) for _ in range(2)]
    second = [torch.zeros(2, 8) for _ in range(2)]
    lc.subspace_step_(weights, _rows(), bases, first, second, sides=["left"] * 2, steps=[1, 1], lr=0.1)
    return [*weights, *first, *second]


def _kalman() -> list[Tensor]:
    theta, p = [draw(5)], [torch.ones(5)]
    lc.kalman_diag_step_(theta, p, [draw(2, 5)], [draw(5, seed=1)])
    return [*theta, *p]


def _feedback() -> list[Tensor]:
    residual = torch.zeros(6, 8)
    lc.dct_select_feedback_(residual, draw(6, 8), 2)
    return [residual]


@pytest.mark.parametrize(("kernel", "call"), list(zip(WRITES, (_subspace_step, _kalman, _feedback), strict=True)))
def test_public_functions_in_place_count(kernel: str, call: Any) -> None:
    assert all(array._version >= 1 for array in call()), kernel


PATHS: dict[str, dict[str, Any]] = {
    "fused": {},
    "fused int8": {"moment_dtype": "int8"},
    "fused bfloat16": {"dtype": torch.bfloat16, "rounding": "stochastic"},
    "fused 3-D": {"shape": (8, 4, 3)},
    "sketched": {"method": FloraAdamW},
    "selected": {"method": FrugalAdamW},
    "composed full": {"proj_type": "full"},
    "composed without kernels": {"kernels": False},
    "composed bfloat16": {"dtype": torch.bfloat16, "proj_type": "full", "rounding": "stochastic"},
    "composed behind a gate": {"deferred": True},
    "composed strided 3-D": {"shape": (8, 4, 3), "channels_last": True},
    "plain": {"rank": None},
    "plain int8": {"rank": None, "moment_dtype": "int8"},
    "plain bfloat16": {"rank": None, "dtype": torch.bfloat16, "rounding": "stochastic"},
    "plain complex": {"rank": None, "dtype": torch.complex64},
}


def stepped_once(
    monkeypatch: pytest.MonkeyPatch,
    *,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (8, 12),
    kernels: bool = True,
    deferred: bool = False,
    channels_last: bool = False,
    method: type[LowRankOptimizer] = GaLoreAdamW,
    **keys: Any,
) -> tuple[nn.Parameter, LowRankOptimizer]:
    """A weight after two steps, the first of which found its basis."""
    if not kernels:
        monkeypatch.setattr(fused, "FUSED", {})
    monkeypatch.setattr(devices, "deferred", lambda device: deferred)
    start = draw(*shape).to(dtype)
    weight = nn.Parameter(start.transpose(-1, -2).contiguous().transpose(-1, -2) if channels_last else start)
    optimizer = method([weight], **{"lr": 0.1, "rank": 3, **keys})  # type: ignore[arg-type]
    for seed in (1, 2):
        weight.grad = draw(*shape, seed=seed).to(dtype)
        optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize("path", PATHS)
def test_a_graph_made_before_a_step_refuses_to_be_differentiated(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, optimizer = stepped_once(monkeypatch, **PATHS[path])
    leaf = torch.ones(weight.shape, dtype=weight.dtype, requires_grad=True)
    stale = (weight * leaf).abs().sum()
    before = weight._version
    optimizer.step()
    assert weight._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_matrices_that_are_taken_whole_count(kind: Any) -> None:
    weight = nn.Parameter(draw(8, 12))
    optimizer, loss = kind([weight], lr=0.1), (weight * weight).sum()
    weight.grad = draw(8, 12, seed=1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_skipped_step_is_none() -> None:
    weight = nn.Parameter(draw(8, 12))
    optimizer = GaLoreAdamW([weight], lr=0.1, rank=3)
    weight.grad = draw(8, 12, seed=1)
    optimizer.step()
    loss, weight.grad = (weight * weight).sum(), torch.full((8, 12), torch.nan)
    optimizer.step()
    loss.backward()
    assert optimizer.skipped_steps == 1
