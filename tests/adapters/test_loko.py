"""LoKO: equal to a dense filter's diagonal, safe for any start, and a citizen of any loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loko_cases import CLASSES, batch, model, theta, variances
from lowrank_core import adapters
from testing.tolerance import assert_equal, gamma
from torch import Tensor, nn


def jacobian(net: nn.Module, f: Any) -> Tensor:
    """[outputs, parameters] of f(net), row by row."""
    out = f(net).flatten()
    params = [p for p in net.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(value, params, retain_graph=True) for value in out]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def dense(p: Tensor, h: Tensor, e: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook filter: change and variances, from a covariance that is diagonal before the step."""
    cov = torch.diag(p)
    gain = cov @ h.mT @ torch.linalg.inv(h @ cov @ h.mT + r)
    return gain @ e, torch.diag(cov - gain @ h @ cov)


@pytest.mark.parametrize("b", [1, 3])
def test_a_stacked_step_is_the_diagonal_of_a_dense_filter(b: int) -> None:
    net, (x, y) = model(), batch(b)
    probabilities = torch.softmax(net(x).detach(), -1)
    h = jacobian(net, lambda n: torch.softmax(n(x), -1)[:, :-1])  # one class less: the others say it
    e = (nn.functional.one_hot(y, CLASSES) - probabilities)[:, :-1].flatten()
    r = torch.block_diag(*[torch.diag(v) - torch.outer(v, v) for v in probabilities[:, :-1]])
    start = theta(net)
    delta, p = dense(torch.full_like(start, 0.2), h, e, r)
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None)
    loss = optimizer.step(net(x), y)
    assert_equal(theta(net) - start, delta)
    assert_equal(variances(optimizer, net), p)
    exact = -probabilities[range(b), y].log().mean()
    torch.testing.assert_close(loss.double(), exact, rtol=gamma(CLASSES + b, torch.float32), atol=0)


def test_float_targets_are_observed_with_noise_1() -> None:
    net, (x, _) = model(), batch(2)
    target = torch.randn(2, CLASSES, dtype=torch.float64)
    start, h = theta(net), jacobian(net, lambda n: n(x))
    delta, p = dense(torch.full_like(start, 0.2), h, (target - net(x).detach()).flatten(), torch.eye(6).double())
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None)
    optimizer.step(net(x), target)
    assert_equal(theta(net) - start, delta)
    assert_equal(variances(optimizer, net), p)


def assert_is_dense(policy: str, net: nn.Module, x: Tensor, targets: Tensor, h: Tensor, e: Tensor) -> None:
    """One step with an estimated noise is that of a dense filter with the Jacobian `h` and the error `e`."""
    r = 0.5 * torch.eye(CLASSES, dtype=torch.float64)
    options: dict[str, float] = {"r": 0.5}
    if policy == "ema_pre":
        options = {"beta": 0.9, "r0": 0.5}
        r = 0.9 * r + 0.1 * (torch.outer(e, e) + 0.2 * h @ h.mT)
    start = theta(net)
    delta, p = dense(torch.full_like(start, 0.2), h, e, r)
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None, policy=policy, policy_options=options)
    optimizer.step(net(x), targets)
    assert_equal(theta(net) - start, delta)
    assert_equal(variances(optimizer, net), p)


@pytest.mark.parametrize("policy", ["fixed", "ema_pre"])
def test_estimated_noise_of_float_targets_is_that_of_a_dense_filter(policy: str) -> None:
    """Nothing is added to it: float outputs, unlike probabilities, do not sum to a constant."""
    net, (x, _) = model(), batch(1)
    target = torch.randn(1, CLASSES, dtype=torch.float64)
    h, e = jacobian(net, lambda n: n(x)), (target - net(x).detach())[0]
    assert_is_dense(policy, net, x, target, h, e)


@pytest.mark.parametrize("policy", ["fixed", "ema_pre"])
def test_estimated_noise_of_probabilities_is_that_of_a_dense_filter(policy: str) -> None:
    """Deflation moves nothing: rows and error of probabilities sum to 0."""
    net, (x, y) = model(), batch(1)
    h = jacobian(net, lambda n: torch.softmax(n(x), -1))
    e = nn.functional.one_hot(y[0], CLASSES) - torch.softmax(net(x).detach()[0], -1)
    assert_is_dense(policy, net, x, y, h, e)


def test_one_weight_is_recursive_least_squares() -> None:
    layer, p0 = nn.Linear(1, 1, bias=False).double(), 2.0
    nn.init.constant_(layer.weight, 0.5)
    optimizer = adapters.LoKO(layer, p0=p0, kl_limit=None)
    xs, ys = torch.randn(7, 1, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    for x, y in zip(xs, ys, strict=True):
        optimizer.step(layer(x[None]), y[None])
    precision = 1 / p0 + xs.square().sum()
    assert_equal(1 / optimizer.state[layer.weight]["variance"].squeeze(), precision)
    assert_equal(layer.weight.detach().squeeze(), ((xs * ys).sum() + 0.5 / p0) / precision)


def test_sequential_is_one_dense_filter_after_the_other_on_one_linearization() -> None:
    net, (x, y) = model(), batch(3)
    start = theta(net)
    moved, p = torch.zeros_like(start), torch.full_like(start, 0.2)
    for i in range(3):
        logits = net(x[i : i + 1]).detach()[0]
        probabilities = torch.softmax(logits, -1)
        fisher = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        h = jacobian(net, lambda n, i=i: n(x[i : i + 1]))
        g = h.mT @ (nn.functional.one_hot(y[i], CLASSES) - probabilities) - h.mT @ fisher @ h @ moved
        information = torch.diag(1 / p) + h.mT @ fisher @ h
        moved, p = moved + torch.linalg.solve(information, g), torch.diag(torch.linalg.inv(information))
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None, batch="sequential")
    optimizer.step(net(x), y)
    assert_equal(theta(net) - start, moved)
    assert_equal(variances(optimizer, net), p)


def lumped(logits: Tensor, kept: list[int]) -> Tensor:
    """Probabilities of `kept` and of all others together."""
    y = torch.softmax(logits, -1)
    return torch.cat([y[kept], (1 - y[kept].sum()).view(1)])


@pytest.mark.parametrize("fisher", ["full", "lumped"])
@pytest.mark.parametrize("b", [1, 3])
def test_epsilon_is_added_to_the_noise_of_all_classes(b: int, fisher: str) -> None:
    """R = Λ + εI for probabilities, lumped or not: now it has an inverse, and the dense filter needs no class less."""
    net, (x, y) = model(classes=7), batch(b)
    keep = {i: torch.softmax(net(x).detach(), -1)[i].topk(2).indices.tolist() for i in range(b)}
    keep = {i: kept + [int(y[i])] * (int(y[i]) not in kept) for i, kept in keep.items()}
    if fisher == "full":
        keep = {i: list(range(7)) for i in range(b)}

    def seen(logits: Tensor, i: int) -> Tensor:
        return torch.softmax(logits, -1) if fisher == "full" else lumped(logits, keep[i])

    start, h = theta(net), jacobian(net, lambda n: torch.cat([seen(n(x)[i], i) for i in range(b)]))
    parts = [seen(net(x).detach()[i], i) for i in range(b)]
    e = torch.cat([-part for part in parts])
    for i in range(b):
        e[sum(map(len, parts[:i])) + keep[i].index(int(y[i]))] += 1
    r = torch.block_diag(*[torch.diag(v) - torch.outer(v, v) + 0.1 * torch.eye(len(v), dtype=v.dtype) for v in parts])
    delta, p = dense(torch.full_like(start, 0.2), h, e, r)
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None, fisher=fisher, keep=2, policy_options={"epsilon": 0.1})
    optimizer.step(net(x), y)
    assert_equal(theta(net) - start, delta)
    assert_equal(variances(optimizer, net), p)


def mean_of(rows: Tensor, scores: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Change and variances from rows [b, k, n] and scores [b, n]: what has MᵀM = b mean(M)ᵀ mean(M)."""
    rows = rows.mean(0) * len(rows) ** 0.5
    covariance = torch.linalg.inv(torch.diag(1 / p) + rows.mT @ rows)
    return covariance @ scores.sum(0), covariance.diagonal()


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("floats", [False, True])
def test_the_mean_of_samples_that_differ(floats: bool, epsilon: float) -> None:
    """A row is the same class, or output, of all samples; the score is exact."""
    net, (x, y) = model(), batch(4)
    target = torch.randn(4, CLASSES, dtype=torch.float64) if floats else y
    start, j = theta(net), jacobian(net, lambda n: n(x)).view(4, CLASSES, -1)
    eye, rows, scores = torch.eye(CLASSES, dtype=torch.float64), [], []
    for i, logits in enumerate(net(x).detach()):
        v = torch.softmax(logits, -1)
        fisher = eye if floats else torch.diag(v) - torch.outer(v, v)
        e = target[i] - logits if floats else eye[y[i]] - v
        root = torch.linalg.cholesky(fisher + epsilon * eye) if epsilon or floats else None
        mixed = v.sqrt().diag() @ (eye - torch.outer(v.sqrt(), v.sqrt()))  # C, of the softmax's own noise
        rows.append((mixed.mT if root is None else torch.linalg.solve(root, fisher)) @ j[i])
        scores.append(j[i].mT @ (e if root is None else fisher @ torch.linalg.solve(fisher + epsilon * eye, e)))
    delta, p = mean_of(torch.stack(rows), torch.stack(scores), torch.full_like(start, 0.2))
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None, batch="mean", policy_options={"epsilon": epsilon})
    optimizer.step(net(x), target)
    assert_equal(theta(net) - start, delta)
    assert_equal(variances(optimizer, net), p)


def test_the_mean_of_equal_samples_is_their_stack() -> None:
    found = []
    for mode in ("mean", "stacked"):
        net, (x, y) = model(), batch(1)
        optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None, batch=mode)
        optimizer.step(net(x.expand(4, -1)), y.expand(4))
        found.append((theta(net), variances(optimizer, net)))
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("fisher", ["full", "lumped", "monte_carlo"])
def test_tokens_that_are_ignored_do_not_count(fisher: str) -> None:
    found = []
    for ignored in (False, True):
        net, (x, y) = model(), batch(4)
        tokens, targets = net(x).view(2, 2, CLASSES), y.view(2, 2)
        if ignored:
            more = net(torch.randn(2, 5, dtype=torch.float64)).view(2, 1, CLASSES)
            tokens = torch.cat([tokens, more], 1)
            targets = torch.cat([targets, torch.full((2, 1), -100)], 1)
        optimizer = adapters.LoKO(net, p0=0.2, fisher=fisher, draws=400)
        optimizer.step(tokens, targets)
        found.append(theta(net) - theta(model()))
    if fisher == "monte_carlo":  # other draws: the same step but for their noise
        assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.9
    else:
        assert_equal(*found)


def test_gradients_alone_are_one_observation() -> None:
    net, (x, y) = model(), batch(4)
    start = theta(net)
    optimizer = adapters.LoKO(net, p0=0.2, kl_limit=None)
    nn.functional.cross_entropy(net(x), y).backward()
    g = torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])  # type: ignore[union-attr]
    assert optimizer.step() is None
    weight = 1 + (0.2 * g * g).sum()
    assert_equal(theta(net) - start, -0.2 * g / weight)
    assert_equal(variances(optimizer, net), 0.2 - (0.2 * g).square() / weight)


def test_a_closure_is_evaluated_and_its_loss_returned() -> None:
    net, (x, y) = model(), batch(4)
    optimizer = adapters.LoKO(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    before = theta(net)
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(before, theta(net))


@pytest.mark.parametrize("policy", ["ggn", "ema_pre", "ema_post", "innovation", "scalar", "fixed"])
@pytest.mark.parametrize("p0", [1e-3, 1.0])
def test_variances_stay_positive_and_weights_finite(policy: str, p0: float) -> None:
    net = model(torch.float32)
    optimizer = adapters.LoKO(net, p0=p0, policy=policy)
    for step in range(60):
        x, y = batch(2, torch.float32, seed=step // 20)  # three batches, each until it is known by heart
        optimizer.step(net(10 * x), y)
        p = variances(optimizer, net)
        assert bool((p > 0).all()) and bool((p <= p0).all()) and bool(theta(net).isfinite().all())
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("limit", [1e-3, 1e-5])
def test_predictions_move_no_further_than_the_limit(limit: float) -> None:
    moved = []
    for own in (None, limit):
        net, (x, y) = model(), batch(1)
        probabilities, h, before = torch.softmax(net(x).detach()[0], -1), jacobian(net, lambda n, x=x: n(x)), theta(net)
        adapters.LoKO(net, p0=1.0, kl_limit=own).step(net(x), y)
        change = h @ (theta(net) - before)
        fisher = torch.diag(probabilities) - torch.outer(probabilities, probabilities)
        moved.append(float(0.5 * change @ fisher @ change))
    assert moved[0] > limit >= moved[1] * (1 - gamma(len(before), torch.float64))
    assert moved[1] > limit * (1 - gamma(len(before), torch.float64))


def test_process_noise_gives_variance_back_up_to_the_start() -> None:
    net, (x, y) = model(), batch(1)
    plain = adapters.LoKO(copy.deepcopy(net), p0=0.2)
    noisy = adapters.LoKO(net, p0=0.2, process_noise=1e-2)
    for optimizer in (plain, noisy):
        (own := optimizer._model).zero_grad()  # type: ignore[union-attr]
        optimizer.step(own(x), y)  # type: ignore[misc]
    expected = (variances(plain, plain._model) + 2e-3).clamp(max=0.2)  # type: ignore[arg-type]
    assert_equal(variances(noisy, net), expected)
