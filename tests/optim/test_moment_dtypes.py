"""How moments are stored: in the weight's own width by default, on both paths, and what that saves."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from lowrank_core.memory.storage import Role
from lowrank_core.optim import GaLoreAdamW, devices, estimate_state_bytes, param_groups
from lowrank_core.optim.parts import codecs
from optim_cases import Zoo, draw, plain_on_purpose, same, snapshot, train
from torch import nn

Shapes = dict[str, tuple[int, ...]]

LLAMA_60M: Shapes = {"embed": (32000, 512), "lm_head": (32000, 512), "norm": (512,)} | {
    f"{layer}.{name}": shape
    for layer in range(8)
    for name, shape in {
        "q": (512, 512), "k": (512, 512), "v": (512, 512), "o": (512, 512), "gate": (1376, 512), "up": (1376, 512),
        "down": (512, 1376), "norm1": (512,), "norm2": (512,),
    }.items()
}  # fmt: skip
MATRICES: Shapes = {f"{i}": (512, 512) for i in range(8)} | {f"{i + 8}": (512, 1376) for i in range(6)}
SMALL: Shapes = {"embed": (8000, 512), "lm_head": (8000, 512), **MATRICES}


def galore_torch(shapes: Shapes, rank: int) -> int:
    """What galore_torch 1.0 holds for bfloat16 weights: basis and moments as wide as the weight."""
    plain = sum(prod(shape) for name, shape in shapes.items() if name in ("embed", "lm_head") or len(shape) < 2)
    total = 2 * 2 * plain
    for name, shape in shapes.items():
        if name not in ("embed", "lm_head") and len(shape) == 2:
            short, long = sorted(shape)
            total += 2 * short * rank + 2 * 2 * long * rank if rank < short else 2 * 2 * short * long
    return total


@pytest.mark.parametrize("rank", [16, 128, 256])
@pytest.mark.parametrize("shapes", [LLAMA_60M, SMALL, MATRICES], ids=["60M", "small", "matrices"])
def test_the_default_state_of_a_bfloat16_model(shapes: Shapes, rank: int) -> None:
    """At most galore_torch's and 8 bytes of counters for each weight; below AdamW's."""
    held = estimate_state_bytes(shapes, rank=rank, dtype=torch.bfloat16)
    assert held <= galore_torch(shapes, rank) + 8 * len(shapes)
    assert held < estimate_state_bytes(shapes, "adamw", dtype=torch.bfloat16)


@pytest.mark.parametrize("keys", [{}, {"moment_dtype": "int8"}, {"plain_moment_dtype": "int8"}], ids=str)
def test_what_is_held_is_what_was_estimated(keys: dict[str, Any]) -> None:
    weights = {name: nn.Parameter(draw(*shape).bfloat16()) for name, shape in {**MATRICES, "norm": (513,)}.items()}
    optimizer = GaLoreAdamW(weights.items(), rank=32, oversample=2, niter=0, **keys)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    estimate = estimate_state_bytes(shapes, rank=32, dtype=torch.bfloat16, **keys)
    assert optimizer.state_bytes() == optimizer.planned_state_bytes() == estimate


AUTO = {
    torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,
}  # fmt: skip


@pytest.mark.parametrize("dtype", AUTO, ids=str)
def test_auto_is_the_weights_own_width_and_float32_for_float16(dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    optimizer = GaLoreAdamW(model.named_parameters(), rank=4)
    train(model, optimizer, range(2))
    paths = {"projected": model.up.weight, "plain": model.up.bias, "0-D": model.gain}
    for weight in paths.values():
        state = optimizer.state[weight]
        assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (AUTO[dtype], AUTO[dtype])


KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@pytest.mark.parametrize("plain", [None, *KINDS])
@pytest.mark.parametrize("projected", KINDS)
def test_each_path_has_its_own_key(projected: str, plain: str | None) -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4, moment_dtype=projected, plain_moment_dtype=plain)
    train(model, optimizer, range(2))

    def stored(weight: nn.Parameter) -> torch.dtype:
        state = optimizer.state[weight]
        return state.get("exp_avg.codes", state.get("exp_avg")).dtype

    assert stored(model.up.weight) == KINDS[projected]
    assert stored(model.up.bias) == stored(model.gain) == KINDS[plain or projected]


@plain_on_purpose
@pytest.mark.parametrize(("kind", "step"), [("bfloat16", 2.0**-7), ("int8", 2.0**-7)])
def test_coded_moments_of_the_plain_path_are_those_of_adamw_in_the_mean(kind: str, step: float) -> None:
    """After one step from zero they are (1 - beta) g and (1 - beta) g^2: rounded up or down, right in the mean."""
    weight = nn.Parameter(torch.zeros(512, 512))
    optimizer = GaLoreAdamW([weight], rank=None, moment_dtype=kind)
    weight.grad = draw(512, 512).abs() + 0.5
    optimizer.step()
    codec = codecs.moment_codec(kind, weight)
    for name, exact in (("exp_avg", 0.1 * weight.grad), ("exp_avg_sq", 0.001 * weight.grad.square())):
        role = Role.SECOND_MOMENT if name == "exp_avg_sq" else Role.MOMENT
        held = codec.decode(optimizer.state[weight], name, torch.float32, role)
        # Below the spacing of bfloat16, or below a step of the largest of 256 entries (in its root: twice that).
        largest = exact.view(-1, 256).amax(dim=1, keepdim=True) * (1 if name == "exp_avg" else 2)
        width = step * (largest if kind == "int8" else exact.view(-1, 256))
        error = held.view(-1, 256) - exact.view(-1, 256)
        assert bool((error.abs() <= 1.01 * width).all())
        assert not torch.equal(held, exact)
        # The mean of n independent errors below a width: Hoeffding, 6 standard deviations.
        assert abs(error.mean()) <= 6 * width.max() / error.numel() ** 0.5


def test_the_draws_of_the_plain_path_are_positions() -> None:
    """No two parameters and no two seeds share their words."""

    def codes(seed: int) -> list[torch.Tensor]:
        weights = [nn.Parameter(torch.zeros(4096)) for _ in range(2)]
        optimizer = GaLoreAdamW(weights, rank=None, moment_dtype="bfloat16", seed=seed)
        for weight in weights:
            weight.grad = draw(4096)
        optimizer.step()
        return [optimizer.state[weight][name] for weight in weights for name in ("exp_avg", "exp_avg_sq")]

    one, again, other = codes(0), codes(0), codes(1)
    assert same(one, again)
    assert not torch.equal(one[0], one[2]) and not torch.equal(one[1], one[3])
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_long_constant_gradient_reaches_its_second_moment() -> None:
    """Rounded to nearest, a bfloat16 second moment of decay 0.999 would stop at half its value or never move."""
    weight = nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    optimizer = GaLoreAdamW([weight], lr=0.0, rank=None, betas=(0.9, 0.99))
    weight.grad = torch.ones_like(weight)
    for _ in range(300):
        optimizer.step()
    exact = 1 - 0.99**300
    held = optimizer.state[weight]["exp_avg_sq"].double()
    # Each step adds an independent error below a spacing 2^-8, of whose variance 0.99^2k remains k steps later.
    spread = 2.0**-8 * (1 / (1 - 0.99**2)) ** 0.5
    assert abs(held.mean() - exact) <= 6 * spread / 4096**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_device_without_kernels_takes_the_working_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "deferred", lambda device: True)
    model = Zoo(dtype)
    optimizer = GaLoreAdamW(model.parameters(), rank=4)
    train(model, optimizer, range(2))
    assert optimizer.state[model.up.weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state_bytes() <= optimizer.planned_state_bytes()


@pytest.mark.parametrize("kind", ["auto", "bfloat16", "int8", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_a_resumed_run_keeps_its_bits_and_widths(kind: str, dtype: torch.dtype) -> None:
    model, twin = Zoo(dtype), Zoo(dtype)
    keys = {
        "rank": 4,
        "update_proj_gap": 3,
        "moment_dtype": kind,
        "plain_moment_dtype": "int8",
        "rounding": "stochastic",
    }
    one, other = GaLoreAdamW(model.parameters(), **keys), GaLoreAdamW(twin.parameters(), **keys)
    train(model, one, range(8))
    train(twin, other, range(5))
    fresh = GaLoreAdamW(twin.parameters(), rank=4)
    fresh.load_state_dict(other.state_dict())
    train(twin, fresh, range(5, 8))
    assert same(snapshot(model, one), snapshot(twin, fresh))


def test_param_groups_take_the_keys() -> None:
    groups = param_groups(Zoo(), rank=4, verbose=False, moment_dtype="int8", plain_moment_dtype="bfloat16")
    assert groups[-1]["moment_dtype"] == "int8"
