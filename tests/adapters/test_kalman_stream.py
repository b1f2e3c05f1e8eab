"""A classifier that learns from a stream in one pass: stable over a decade and a half of p0, with the limit."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import adapters, kalman_diag_step_
from testing import cases
from torch import Tensor, nn

CLASSES, SAMPLES = 10, 300


def mixture() -> tuple[Tensor, Tensor]:
    """Samples of ten Gaussians in 20 dimensions."""
    generator = cases.generator(16)
    centres = 1.2 * generator.standard_normal((CLASSES, 20))
    labels = generator.integers(0, CLASSES, SAMPLES)
    x = centres[labels] + generator.standard_normal((SAMPLES, 20))
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


def online(p0: float, kl_limit: float | None) -> tuple[float, bool]:
    """Accuracy on the second half, each sample predicted before it was learned, and whether all is finite."""
    xs, ys = mixture()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    params = list(model.parameters())
    variances = [torch.full_like(p, p0) for p in params]
    right = 0
    for k in range(SAMPLES):
        with adapters.record_linears(model) as tape:
            logits = model(xs[k])
        right += int(k >= SAMPLES // 2 and int(logits.argmax()) == int(ys[k]))
        cotangents = adapters.softmax_cotangents(logits, ys[k])
        rows = adapters.jacobian_rows(logits, params, cotangents, tape=tape, chunk=16, batched=True)
        kalman_diag_step_([p.data for p in params], variances, *adapters.split_score(rows), kl_limit=kl_limit)
        assert all(bool((p > 0).all()) for p in variances)
    return 2 * right / SAMPLES, all(bool(p.isfinite().all()) for p in params)


@pytest.mark.parametrize("p0", [0.01, 0.1, 0.3])
def test_a_stream_is_learned(p0: float) -> None:
    accuracy, finite = online(p0, kl_limit=1.0)
    assert finite and accuracy >= 6 / CLASSES
