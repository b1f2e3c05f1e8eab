"""Numbers in 8 bits and linear layers of them."""

from __future__ import annotations

import copy

import pytest
import torch
from lowrank_core.optim import (
    GaLoreAdamW,
    Int8Linear,
    devices,
    int8,
)
from lowrank_core.optim.int8 import Int8Weight
from optim_cases import draw, same
from testing import tolerance
from torch import Tensor, nn

U32 = 2.0**-24


# ---- numbers in 8 bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (16, 16), (17, 31), (1, 300), (0, 4)])
def test_an_entry_is_off_by_at_most_half_a_step(shape: tuple[int, int], dtype: torch.dtype) -> None:
    value = (draw(*shape) * torch.logspace(-3, 3, shape[1])).to(dtype)
    coded = Int8Weight.of(value)
    assert (coded.shape, coded.dtype, coded.codes.dtype) == (shape, dtype, torch.int8)
    assert coded.scales.shape == (-(-value.numel() // 256),)
    steps = coded.scales.repeat_interleave(256)[: value.numel()].view(shape).double()
    back = coded.decoded(torch.float32).double()
    assert bool(((back - value.double()).abs() <= steps * (0.5 + 2**-12)).all())
    for start in range(0, value.numel(), 256):  # the largest of a block is kept
        block = slice(start, start + 256)
        largest = value.double().flatten()[block].abs().max()
        assert abs(back.flatten()[block].abs().max() - largest) <= 4 * U32 * largest
    with devices.without_kernels():
        assert torch.equal(coded.decoded(), Int8Weight.of(value).decoded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_are_decoded_as_the_whole_is(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = Int8Weight.of(draw(17, 61))  # four blocks and a rest
    whole = coded.decoded(dtype)
    monkeypatch.setattr(int8, "_DECODED", 2)
    assert torch.equal(coded.decoded(dtype), whole)


def test_writing_is_right_in_the_mean() -> None:
    """4096 draws of entries between two codes: within four standard deviations of a mean, for all of 512."""
    value = draw(2, 256)
    coded, total, draws = Int8Weight.of(value), torch.zeros(2, 256, dtype=torch.float64), 4096
    for step in range(draws):
        coded.write(value, 5, step)
        total += coded.decoded().double()
    steps = coded.scales.double()[:, None]
    off = (total / draws - value.double()).abs() / steps
    assert off.max() <= 4.5 * 0.5 / draws**0.5  # the deviation of one draw is at most half a step
    assert off.square().mean().sqrt() > 0.1 * 0.5 / draws**0.5  # it is random


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_steps_below_a_code_are_not_lost(share: float) -> None:
    """The drift of the weights is that of the updates, whose size is a small share of a code's step."""
    layer = Int8Linear.from_linear(nn.Linear(64, 64, bias=False))
    start = layer.weight.decoded().clone()
    lr = share * float(layer.weight.scales.min())
    optimizer = GaLoreAdamW([layer.weight], lr=lr, rank=None, betas=(0.0, 0.0), eps=0.0)
    layer.weight.grad = torch.ones(64, 64)  # steps of -lr each
    steps = 200
    for _ in range(steps):
        optimizer.step()
    moved = float((start - layer.weight.decoded()).double().mean())
    # Each step adds the error of a draw, at most half a code's, to each of 4096 entries.
    deviation = 0.5 * float(layer.weight.scales.max()) * (steps / 4096) ** 0.5
    assert abs(moved - steps * lr) <= 4.5 * deviation and steps * lr > 9 * deviation * share / 0.01 * 0.1


def test_a_step_of_nothing_changes_nothing() -> None:
    layer = Int8Linear.from_linear(nn.Linear(64, 64))
    before = copy.deepcopy(layer.state_dict())
    optimizer = GaLoreAdamW(layer.parameters(), lr=0.0, rank=8)
    for seed in range(3):
        for weight in layer.parameters():
            weight.grad = draw(*weight.shape, seed=seed)
        optimizer.step()
    assert same(layer.state_dict()["weight.codes"], before["weight.codes"])
    assert (layer.state_dict()["weight.scales"] - before["weight.scales"]).abs().max() <= 4 * U32


# ---- the layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needs", [False, True])
def test_it_is_a_linear_layer_of_the_weights_that_it_has(dtype: torch.dtype, needs: bool) -> None:
    """Values and gradients, whether or not the input needs one."""
    layer = Int8Linear.from_linear(nn.Linear(24, 40).to(dtype))
    plain = nn.Linear(24, 40).to(dtype)
    plain.load_state_dict({"weight": layer.weight.decoded(), "bias": layer.bias.detach()})
    inputs = [draw(2, 3, 24, seed=1).to(dtype).requires_grad_(needs) for _ in range(2)]
    outputs = [one(x) for one, x in zip((layer, plain), inputs, strict=True)]
    for y in outputs:
        (y * draw(2, 3, 40, seed=2).to(dtype)).sum().backward()
    pairs = [outputs, [layer.weight.grad, plain.weight.grad], [layer.bias.grad, plain.bias.grad]]
    pairs += [[x.grad for x in inputs]] if needs else []
    for ours, theirs in pairs:
        assert type(ours) is Tensor and ours.dtype == dtype
        size = 40 * tolerance.UNIT[dtype] * float(theirs.detach().double().abs().max() + 1)
        assert (ours.double() - theirs.double()).abs().max() <= 4 * size
    assert needs or inputs[0].grad is None


def test_under_autocast_the_product_is_autocasts() -> None:
    layer, x = Int8Linear.from_linear(nn.Linear(24, 40)), draw(5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    exact = x @ layer.weight.decoded().mT + layer.bias
    assert (y - exact).abs().max() <= 24 * 2.0**-8 * (exact.abs().max() + 1)


def test_nothing_dense_is_kept_for_the_way_back() -> None:
    layer, kept = Int8Linear.from_linear(nn.Linear(24, 40)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(draw(5, 24))
    assert [tuple(tensor.shape) for tensor in kept if not isinstance(tensor, Int8Weight)] == [(5, 24)]


def test_a_fresh_layer_draws_as_linear_does() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40)
    torch.manual_seed(0)
    layer = Int8Linear(24, 40)
    assert same(layer.state_dict(), Int8Linear.from_linear(plain).state_dict())
    assert Int8Linear(3, 4, bias=False, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


def test_a_layer_is_as_the_one_it_is_made_of() -> None:
    plain = nn.Linear(24, 40).eval()
    plain.weight.requires_grad_(False)
    layer = Int8Linear.from_linear(plain)
    assert not layer.training and not layer.weight.requires_grad and layer.bias is plain.bias
    assert (layer.in_features, layer.out_features) == (24, 40) and isinstance(layer, nn.Linear)
    with torch.no_grad():
        plain.weight.zero_()
    assert not Int8Linear.from_linear(plain).weight.decoded().any()


def test_what_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Int8Linear.from_linear: `linear` must be a torch.nn.Linear, got Conv1d"):
        Int8Linear.from_linear(nn.Conv1d(3, 4, 1))
