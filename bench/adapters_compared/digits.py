"""scikit-learn's digits under a perceptron (64-64-64-10) that has learned five of the ten classes from 500 of them."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from adapters_compared.stream import HELD_OUT, Stream, Task

FIRST, KNOWN, SHIFT = 500, 5, 3  # samples and classes that are known, and by how much labels turn


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
    return data.float() / 16 - 0.3, classes


def _order(seed: int) -> Tensor:
    return torch.randperm(len(_digits()[1]), generator=torch.Generator().manual_seed(seed))


def perceptron(seed: int) -> nn.Module:
    """It has seen the first samples of the known classes, in the order of the seed, 30 times."""
    data, classes = _digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    before = _order(seed)[:FIRST]
    before = before[classes[before] < KNOWN]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        for part in before[torch.randperm(len(before))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[part]), classes[part]).backward()
            optimizer.step()
    return model


def stream(shifted: bool, seed: int) -> Stream:
    """The samples after the first. `shifted`: in the second half, and of what is held out, labels are turned."""
    data, classes = _digits()
    after = _order(seed)[FIRST:]
    held, order = after[: int(HELD_OUT * len(after))], after[int(HELD_OUT * len(after)) :]
    targets, held_targets = classes[order].clone(), classes[held].clone()
    if shifted:
        half = len(targets) // 2
        targets[half:] = (targets[half:] + SHIFT) % 10
        held_targets = (held_targets + SHIFT) % 10
    return Stream((data[order],), targets, (data[held],), held_targets)


DIGITS = Task("digits", perceptron, partial(stream, False))
SHIFTED = Task("digits, shifted", perceptron, partial(stream, True))
