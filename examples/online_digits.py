"""Online logistic regression on scikit-learn's digits: one pass, sample by sample, each predicted before it is seen.

Kalman steps on the softmax observation against AdaGrad and Adam. All three get a small grid of their one setting; the
whole row is printed, because picking the best afterwards flatters everybody.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from lowrank_core import adapters, kalman_diag_step_
from sklearn.datasets import load_digits
from torch import Tensor, nn

SAMPLES, SEEDS = 400, 2
KL_LIMIT = 1.0  # on the predicted change of a sample's class distribution


def data(seed: int) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    return torch.as_tensor(digits.data, dtype=torch.float32)[order] / 16, torch.as_tensor(digits.target)[order]


def kalman(p0: float) -> Callable[[nn.Linear, Tensor, Tensor], bool]:
    variances: list[Tensor] = []

    def step(model: nn.Linear, x: Tensor, y: Tensor) -> bool:
        params = list(model.parameters())
        if not variances:
            variances.extend(torch.full_like(p, p0) for p in params)
        with adapters.record_linears(model) as tape:
            logits = model(x)
        rows = adapters.jacobian_rows(
            logits, params, adapters.softmax_cotangents(logits, y), tape=tape, chunk=16, batched=True
        )
        jac, score = adapters.split_score(rows)
        with torch.no_grad():
            kalman_diag_step_(params, variances, jac, score, kl_limit=KL_LIMIT)
        return bool(logits.argmax() == y)

    return step


def by_gradient(make: Callable[[nn.Linear], torch.optim.Optimizer]) -> Callable[[nn.Linear, Tensor, Tensor], bool]:
    optimizers: list[torch.optim.Optimizer] = []

    def step(model: nn.Linear, x: Tensor, y: Tensor) -> bool:
        if not optimizers:
            optimizers.append(make(model))
        logits = model(x)
        optimizers[0].zero_grad()
        nn.functional.cross_entropy(logits, y).backward()
        optimizers[0].step()
        return bool(logits.argmax() == y)

    return step


GRIDS: dict[str, dict[float, Callable[[], Callable[[nn.Linear, Tensor, Tensor], bool]]]] = {
    "Kalman, p0": {p0: lambda p0=p0: kalman(p0) for p0 in (0.03, 0.1, 0.3, 1.0)},
    "AdaGrad, lr": {
        lr: lambda lr=lr: by_gradient(lambda model: torch.optim.Adagrad(model.parameters(), lr=lr))
        for lr in (0.01, 0.03, 0.1, 0.3)
    },
    "Adam, lr": {
        lr: lambda lr=lr: by_gradient(lambda model: torch.optim.Adam(model.parameters(), lr=lr))
        for lr in (0.001, 0.003, 0.01, 0.03)
    },
}


def accuracy(make: Callable[[], Callable[[nn.Linear, Tensor, Tensor], bool]]) -> float:
    """Share of samples predicted right before they were learned from, mean over seeds."""
    right = 0
    for seed in range(SEEDS):
        model, step = nn.Linear(64, 10), make()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        right += sum(step(model, x, y) for x, y in zip(*data(seed), strict=True))
    return right / (SEEDS * SAMPLES)


def main() -> None:
    print(f"online accuracy over the first {SAMPLES} samples, {SEEDS} orders; a linear model, 650 parameters")
    for name, grid in GRIDS.items():
        cells = "  ".join(f"{value:g}: {accuracy(make):.3f}" for value, make in grid.items())
        print(f"{name:12} {cells}")


if __name__ == "__main__":
    main()
