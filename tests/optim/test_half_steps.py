"""Each single step of half-precision weights, from the state before it: with one left out, or rounded otherwise, it
would be somewhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import draw
from testing import tolerance
from torch import Tensor, nn

STEPS, RANK, LR, EPS, DECAY, SCALE, BETAS = 5, 4, 0.25, 2.0**-6, 0.125, 0.5, (0.75, 0.9375)
SHAPES = {"left": (24, 40), "right": (40, 24), "full": (40, 24), "convolution": (12, 4, 3, 3), "plain": (40, 24)}
UNIT = tolerance.UNIT[torch.float32]


def keys_of(path: str) -> dict[str, Any]:
    return {"rank": None} if path == "plain" else {"rank": RANK, "proj_type": "full" if path == "full" else "std"}


def lift(low: Tensor, bases: dict[str, Tensor]) -> Tensor:
    low = bases["left"] @ low if "left" in bases else low
    return low @ bases["right"].mT if "right" in bases else low


def bases_of(state: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    if "proj.basis" in state:
        return {"left" if shape[0] < shape[1] else "right": state["proj.basis"].double()}
    return {key[11:]: state[key].double() for key in state if key.startswith("proj.basis_")}


def down(grad: Tensor, bases: dict[str, Tensor]) -> Tensor:
    grad = bases["left"].mT @ grad if "left" in bases else grad
    return grad @ bases["right"] if "right" in bases else grad


def expected(weight: Tensor, grad: Tensor, state: dict[str, Any], number: int, bases: dict[str, Tensor]) -> Any:
    """What step `number` makes of `weight`, in float64, and by how much float32 may miss it."""
    low, magnitudes = down(grad, bases), {side: basis.abs() for side, basis in bases.items()}
    mean, square = (state[name].double() if name in state else 0.0 for name in ("exp_avg", "exp_avg_sq"))
    mean = BETAS[0] * mean + (1 - BETAS[0]) * low
    square = BETAS[1] * square + (1 - BETAS[1]) * low**2
    first, root = mean / (1 - BETAS[0] ** number), (square / (1 - BETAS[1] ** number)).sqrt() + EPS
    update, scale = lift(first / root, bases), SCALE if bases else 1.0
    # A product of at most 40 terms on each side; a few roundings of moments and quotient; the way back.
    off = tolerance.gamma(40 * len(bases), torch.float32) * down(grad.abs(), magnitudes) + 8 * UNIT * first.abs()
    moved = off / root * (1 + first.abs() / root) + tolerance.gamma(RANK + 2, torch.float32) * first.abs() / root
    wanted = (1 - LR * DECAY) * weight - LR * scale * update
    return wanted, LR * scale * lift(moved, magnitudes) + 4 * UNIT * (weight.abs() + update.abs())


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Between the numbers of `dtype` around x."""
    return 2 * tolerance.UNIT[dtype] * 2.0 ** x.abs().log2().floor()


@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.bfloat16, "nearest"), (torch.bfloat16, "stochastic"), (torch.float16, "nearest")],
    ids=["bfloat16-nearest", "bfloat16-stochastic", "float16"],
)
@pytest.mark.parametrize("path", SHAPES)
def test_every_step_of_five(path: str, dtype: torch.dtype, rounding: str, moment_dtype: str) -> None:
    weight = nn.Parameter(draw(*SHAPES[path]).to(dtype))
    keys = {"rounding": rounding, "moment_dtype": moment_dtype, "update_proj_gap": 3, "scale": SCALE, **keys_of(path)}
    optimizer = GaLoreAdamW([weight], LR, BETAS, EPS, DECAY, **keys)
    for number in range(1, STEPS + 1):
        before = weight.detach().clone()
        held = {key: value.clone() for key, value in optimizer.state[weight].items() if isinstance(value, Tensor)}
        weight.grad = draw(*weight.shape, seed=number).to(dtype)
        optimizer.step()
        state, flat = optimizer.state[weight], (weight.shape[0], weight[0].numel())
        old, grad, new = (x.detach().reshape(flat).double() for x in (before, weight.grad, weight))
        wanted, error = expected(old, grad, held, number, bases_of(state, flat))
        near = torch.maximum(wanted.abs(), new.abs())
        allowed = spacing(near, dtype) * (1.0 if rounding == "stochastic" else 0.5) + error
        assert int(state["step"]) == number
        assert bool(((new - wanted).abs() <= allowed).all()), f"step {number}"
        # A step that is left out, or taken twice, leaves most elements further off than that.
        assert float(((wanted - old).abs() > 2 * allowed).double().mean()) > 0.5
        if rounding == "stochastic":  # to the farther of two neighbours, which nearest never does
            assert bool(((new - wanted).abs() > 0.5 * spacing(near, dtype) + error).any())
