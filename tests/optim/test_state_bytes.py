"""The estimate of state memory against what optimizers hold."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, formula_state_bytes, param_groups
from torch import nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.up, self.down = nn.Linear(12, 30), nn.Linear(30, 12, bias=False)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)


def held_after_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.dtype)
    optimizer.step()
    if isinstance(optimizer, GaLoreAdamW):
        return optimizer.state_bytes()
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_adamw_is_what_torch_holds(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    held = held_after_a_step(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    assert estimate_state_bytes(model, "adamw") == held
    assert estimate_state_bytes(Model(), "adamw", dtype=dtype) == held
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert estimate_state_bytes(shapes, "adamw", dtype=dtype) == held
    assert estimate_state_bytes(list(shapes.values()), "adamw", dtype=dtype) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keys", [{}, {"proj_type": "full"}, {"proj_type": "reverse_std"}, {"projector": "svd"}])
@pytest.mark.parametrize("exclude", ["embed", ()])
def test_galore_is_what_the_optimizer_holds(dtype: torch.dtype, keys: dict, exclude: str | tuple[()]) -> None:
    model = Model().to(dtype)
    optimizer = GaLoreAdamW(param_groups(model, ["embed", "up", "down"], exclude, rank=5, verbose=False, **keys))
    held = held_after_a_step(model, optimizer)
    targets = ["embed", "up", "down"]
    assert estimate_state_bytes(model, rank=5, target_modules=targets, exclude=exclude, **keys) == held
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert estimate_state_bytes(shapes, rank=5, dtype=dtype, exclude=exclude, **keys) == held


def test_the_bytes_are_those_of_the_formula() -> None:
    # 12 x 30 left: basis 12 x 5, moments 5 x 30, all in bfloat16; count, share: 4 bytes each
    shapes = [(12, 30), (9,)]
    assert estimate_state_bytes(shapes, rank=5, dtype=torch.bfloat16) == 2 * 60 + 4 * 150 + 8 + (4 * 9 + 4)
    assert estimate_state_bytes(shapes, rank=5, dtype=torch.bfloat16, moment_dtype="float32") == 120 + 1200 + 8 + 76
    assert formula_state_bytes([(12, 30)], 9, rank=5, basis_bytes=2, moment_bytes=4, other_bytes=4) == 120 + 1200 + 72
    assert formula_state_bytes([(12, 30)], 0, rank=5, basis_bytes=0.5, moment_bytes=1) == 30 + 300


def test_a_leaked_view_would_show() -> None:
    w = nn.Parameter(torch.randn(30, 20))
    optimizer = GaLoreAdamW([w], rank=2)
    w.grad = torch.randn(30, 20)
    optimizer.step()
    honest = optimizer.state_bytes()
    whole = torch.zeros(30, 20)
    optimizer.state[w]["exp_avg"] = whole[:, :2]
    assert optimizer.state_bytes() == honest - 30 * 2 * 4 + 30 * 20 * 4
    optimizer.state[w]["exp_avg_sq"] = whole[:, 2:4]  # the same storage counts once
    assert optimizer.state_bytes() == honest - 2 * 30 * 2 * 4 + 30 * 20 * 4


@pytest.mark.parametrize("name", ["qgalore", "fira", "lisa"])
def test_optimizers_to_come(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"be one of adamw, galore in this version, got '{name}'"):
        estimate_state_bytes([(8, 9)], name)


@pytest.mark.parametrize(
    ("shapes", "keys", "message"),
    [
        ([(8, 9)], {"optimizer": "sgd"}, "`optimizer` must be one of adamw, galore, got 'sgd'"),
        ([(8, 9)], {"exclude": "x"}, "`exclude` must be left out where shapes have no names"),
        ({"a": (8, 9)}, {"target_modules": ["a"]}, "`target_modules` must be left out without a module"),
        ([(8, 9)], {"rank": 0}, "`rank` must be an int >= 1"),
    ],
)
def test_refusals(shapes: object, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_state_bytes(shapes, **keys)  # type: ignore[arg-type]


def test_the_formula_refuses_what_is_not_projected() -> None:
    with pytest.raises(ValueError, match="`projected` must be projectable, got \\(4, 9\\): rank 5"):
        formula_state_bytes([(4, 9)], 0, rank=5)
