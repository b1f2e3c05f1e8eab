"""LISA with gradients that are taken inside backward."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.optim import LISA, fused_backward
from optim_cases import same
from test_lisa import INSIDE, Model, backward, drawn, train


def test_gradients_are_taken_inside_backward_as_by_ordinary_training() -> None:
    """To the bit, with one backward per step, in each period's own layers; afterwards no gradient is left."""
    models = Model(), Model()
    plain, fused = (LISA(INSIDE["galore"](m.parameters()), m, active=2, period=3, seed=5) for m in models)
    handle = fused_backward(models[1], fused)
    for step in range(24):
        train(models[0], plain, range(step, step + 1))
        backward(models[1], step)
        taken = [layer.weight.grad is None for layer in models[1].layers]
        # A layer that is drawn for the first time is known at its first step.
        known = {i for period in range(step // 3 + (step % 3 > 0)) for i in drawn(5, period, 2)}
        assert all(taken[i] for i in known)
        fused.step()
        assert same(dict(models[0].state_dict()), dict(models[1].state_dict()))
    handle.remove()
    train(models[1], fused, range(1))
    with pytest.raises(TypeError, match=r"`optimizer` must be one of lowrank_core .* got AdamW in a LISA"):
        fused_backward(models[1], LISA(torch.optim.AdamW(models[1].parameters()), models[1]))
