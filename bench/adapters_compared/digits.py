"""scikit-learn's digits under a perceptron (64-64-64-10) that has learned five of the ten classes from 500 of them."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from adapters_compared.stream import HELD_OUT, Stream, Task

FIRST, KNOWN, SHIFT = 500, 5, 3  # samples and classes that are known, and by how much labels turn


@cache
def digits() -> tuple[Tensor, Tensor]:
    """[1797, 64] and classes [1797]."""
    from sklearn.datasets import load_digits

    data, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
    return data.float() / 16 - 0.3, classes


def _order(seed: int) -> Tensor:
    return torch.randperm(len(digits()[1]), generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    """As torch draws it."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def learn_known(model: nn.Module, places: Tensor) -> None:
    """Trains on the samples at `places` that are of the known classes, 30 times."""
    data, classes = digits()
    places = places[classes[places] < KNOWN]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        for part in places[torch.randperm(len(places))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[part]), classes[part]).backward()
            optimizer.step()


def turned(classes: Tensor) -> Tensor:
    """The labels of the second half turned by three."""
    half = len(classes) // 2
    return torch.cat([classes[:half], (classes[half:] + SHIFT) % 10])


def perceptron(seed: int) -> nn.Module:
    """It has seen the first samples of the known classes, in the order of the seed."""
    torch.manual_seed(seed)
    model = network()
    learn_known(model, _order(seed)[:FIRST])
    return model


def stream(shifted: bool, seed: int) -> Stream:
    """The samples after the first. `shifted`: in the second half, and of what is held out, labels are turned."""
    data, classes = digits()
    after = _order(seed)[FIRST:]
    held, order = after[: int(HELD_OUT * len(after))], after[int(HELD_OUT * len(after)) :]
    targets, held_targets = classes[order], classes[held]
    if shifted:
        targets, held_targets = turned(targets), (held_targets + SHIFT) % 10
    return Stream((data[order],), targets, (data[held],), held_targets)


DIGITS = Task("digits", perceptron, partial(stream, False))
SHIFTED = Task("digits, shifted", perceptron, partial(stream, True))
