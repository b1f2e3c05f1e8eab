"""The compiled step of SCALE and SinkGD: that it is what steps, and what it leaves to the composition."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.optim import SCALE, SinkGD
from optim_cases import composed, draw, same
from torch import Tensor, nn

SHAPES = {"embed.weight": (30, 8), "up.weight": (20, 8), "conv.weight": (6, 4, 3), "norm.weight": (8,)}
SHAPES |= {"wide.weight": (8, 20), "lm_head.weight": (30, 8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_one_call_steps_all_matrices_of_a_bucket(
    kind: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, compiled = [], _core.lines_step

    def called(params: list[Tensor], *lists: Any, **options: Any) -> None:
        counts.append((len(params), options["lines"]))
        compiled(params, *lists, **options)

    monkeypatch.setattr(_core, "lines_step", called)
    weights = [(name, nn.Parameter(draw(*shape).to(dtype))) for name, shape in SHAPES.items()]
    optimizer = kind(weights, 0.1)
    for step in range(2):
        for _, weight in weights:
            weight.grad = draw(*weight.shape, seed=step).to(dtype)
        optimizer.step()
    expected = [(1, "columns"), (1, "rows"), (3, "rows")] if kind is SCALE else [(5, "both")]
    assert sorted(counts[: len(expected)]) == expected and len(counts) == 2 * len(expected)


@pytest.mark.parametrize("keys", [{"last": False}, {"last": True, "moment_dtype": "int8"}, {}], ids=str)
def test_weights_that_share_memory_are_stepped_one_after_the_other(keys: dict[str, Any]) -> None:
    """Where a kernel refuses: as the composition does it, to the bit."""
    ends = []
    for way in (nullcontext, composed):
        whole = draw(40)
        weights = [nn.Parameter(part.view(5, -1)) for part in (draw(5, 6), whole[:30], whole[20:])]
        optimizer = SCALE(weights, 0.1, **keys) if keys else SinkGD(weights, 0.1, maximize=True)
        for step in range(3):
            for weight in weights:
                weight.grad = draw(*weight.shape, seed=step)
            with way():
                optimizer.step()
        ends.append([weight.detach().clone() for weight in weights])
    assert same(*ends)
