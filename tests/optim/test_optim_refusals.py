"""What the optimizer refuses, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, LowRankOptimizer
from torch import nn

KNOWN = (
    "betas, eps, force_projection, lr, maximize, moment_dtype, moments, niter, nonfinite, oversample, "
    "plain_moment_dtype, proj_type, projector, rank, rounding, rule, scale, seed, stacked, stagger, update_proj_gap, "
    "weight_decay"
)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (6, 8), dtype=dtype), requires_grad=dtype.is_floating_point)


def test_an_unknown_argument_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(
        TypeError, match=f"^GaLoreAdamW: `momentum` must be one of its keys, got momentum; known keys: {KNOWN}$"
    ):
        GaLoreAdamW([weight()], momentum=0.9)


def test_an_unknown_key_of_a_group_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(
        TypeError, match="`update_gap` must be one of its keys, got update_gap, x; known keys: betas, eps"
    ):
        GaLoreAdamW([{"params": [weight()], "rank": 2, "update_gap": 3, "x": 1}])


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("lr", -0.1, "be a number >= 0"),
        ("lr", float("nan"), "be a number >= 0"),
        ("lr", torch.ones(2), "be a number >= 0 or a tensor with one"),
        ("lr", torch.tensor(-1.0), "be a number >= 0"),
        ("lr", torch.tensor(float("nan")), "be a number >= 0"),
        ("lr", torch.tensor([float("inf")]), "be a number >= 0"),
        ("lr", "0.1", "be a number >= 0"),
        ("lr", True, "be a number >= 0"),
        ("betas", (0.9, 1.0), r"be two numbers in \[0, 1\)"),
        ("betas", 0.9, "be two numbers"),
        ("eps", -1e-8, "be a number >= 0"),
        ("moment_dtype", "float16", "be one of auto, float32, bfloat16, int8"),
        ("moment_dtype", None, "be one of auto, float32, bfloat16, int8"),
        ("plain_moment_dtype", "float16", "be one of None, auto, float32, bfloat16, int8"),
        ("rounding", "up", "be one of nearest, stochastic"),
        ("weight_decay", -1, "be a number >= 0"),
        ("rank", 0, "be an int >= 1, a share of min"),
        ("rank", 0.0, "be an int >= 1, a share of min"),
        ("rank", "all", "be an int >= 1, a share of min"),
        ("rank", 2.0, "be an int >= 1, a share of min"),
        ("rank", True, "be an int >= 1, a share of min"),
        ("update_proj_gap", 0, "be an int >= 1"),
        ("scale", float("inf"), "be a finite number"),
        ("proj_type", "top", "be one of std, reverse_std, left, right, full"),
        ("projector", "qr", "be one of rsvd, svd"),
        ("oversample", -1, "be an int >= 0"),
        ("niter", -1, "be an int >= 0"),
        ("moments", "reset", "be one of keep, rotate"),
        ("seed", 0.5, "be an int"),
        ("seed", True, "be an int"),
        ("nonfinite", "ignore", "be one of skip, raise"),
        ("force_projection", 1, "be True or False"),
        ("maximize", "no", "be True or False"),
        ("stacked", 3, "be True or False"),
    ],
)
@pytest.mark.parametrize("where", ["constructor", "group"])
def test_values_out_of_range(key: str, value: Any, rule: str, where: str) -> None:
    with pytest.raises(ValueError, match=rf"^GaLoreAdamW: `{key}` must {rule}.*, got "):
        if where == "constructor":
            GaLoreAdamW([weight()], **{key: value})
        else:
            GaLoreAdamW([{"params": [weight()], key: value}])


def test_sparse_gradients_are_refused_by_name() -> None:
    table, other = nn.Embedding(9, 6, sparse=True), weight()
    table(torch.tensor([1, 2])).sum().backward()
    other.grad = torch.ones_like(other)
    optimizer = GaLoreAdamW([("other", other), ("table.weight", table.weight)], rank=2)
    with pytest.raises(RuntimeError, match=r"step: the gradient of `table.weight` must be dense, got torch.sparse_coo"):
        optimizer.step()
    assert not optimizer.state and torch.equal(other, torch.ones_like(other))


def test_unnamed_parameters_have_a_number() -> None:
    table = nn.Embedding(9, 6, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="the gradient of `parameter 1` must be dense"):
        GaLoreAdamW([{"params": [weight()]}, {"params": [table.weight]}], rank=2).step()


def test_torchs_own_refusals_stand() -> None:
    w = weight()
    with pytest.raises(ValueError, match="empty parameter list"):
        GaLoreAdamW([])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        GaLoreAdamW(w)
    with pytest.raises(ValueError, match="more than one parameter group"):
        GaLoreAdamW([{"params": [w]}, {"params": [w]}])
    with pytest.raises(TypeError, match="ordered collections"):
        GaLoreAdamW([{"params": {w}}])


def test_the_loop_alone_names_no_parts() -> None:
    with pytest.raises(NotImplementedError, match="LowRankOptimizer: an optimizer must name its `parts`"):
        LowRankOptimizer([weight()], GaLoreAdamW([weight()], rank=2).defaults)


def test_keys_that_torch_itself_puts_into_groups_are_known() -> None:
    w = weight()
    optimizer = GaLoreAdamW([{"params": [w], "initial_lr": 0.1}], rank=2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5, last_epoch=0)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_step_without_gradients_does_nothing() -> None:
    optimizer = GaLoreAdamW([weight()], rank=2)
    optimizer.step()
    assert not optimizer.state and optimizer.skipped_steps == 0
