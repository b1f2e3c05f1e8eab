"""Starts of adapters against their formulas, by exact decompositions."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.adapters.starts import METHODS
from start_cases import RANK, REVEALING, N, batches, data, layers, loss, model, moved, triplets, turning, weights
from testing import cases, tolerance
from torch import Tensor, nn

SCALE = 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", REVEALING)
def test_the_weight_and_the_product_together_stay(method: str, dtype: torch.dtype) -> None:
    net = model(dtype)
    before = weights(net)
    adapters.init_lora_(net, method, **data(method, dtype))
    for layer, old in zip(layers(net), before, strict=True):
        moved(layer.base_layer.weight, layer.lora_B, layer.lora_A, SCALE, old)
        assert not torch.equal(layer.base_layer.weight, old) and layer.base_layer.weight.dtype == dtype


@pytest.mark.parametrize("method", ["eva", "lora_sb", "lora_xs"])
def test_the_weight_stays_where_only_the_factors_start(method: str) -> None:
    net = model()
    before = weights(net)
    adapters.init_lora_(net, method, **data(method))
    assert all(torch.equal(one, other) for one, other in zip(weights(net), before, strict=True))


@pytest.mark.parametrize("alpha", [6.0, -1.5])
def test_pissa_is_the_leading_part_of_the_weight(alpha: float) -> None:
    net = model(alpha=alpha)
    before = weights(net)
    adapters.init_lora_(net, "pissa")
    for layer, old in zip(layers(net), before, strict=True):
        u, s, vh = triplets(old, RANK)
        root = (s / abs(alpha / RANK)).sqrt()
        bound = turning(old, RANK)
        torch.testing.assert_close(layer.lora_A.detach(), root.unsqueeze(-1) * vh, rtol=0, atol=bound)
        signed = u * root * (1 if alpha > 0 else -1)
        torch.testing.assert_close(layer.lora_B.detach(), signed, rtol=0, atol=bound)


def test_olora_is_the_leading_part_of_a_qr_factorization() -> None:
    net = model()
    before = weights(net)
    adapters.init_lora_(net, "olora")
    for layer, old in zip(layers(net), before, strict=True):
        q, r = torch.linalg.qr(old)
        signs = r.diagonal().sign()[:RANK]
        condition = float(torch.linalg.cond(old[:, :RANK]))
        bound = condition * tolerance.orthonormality(torch.float64, RANK)
        torch.testing.assert_close(layer.lora_B.detach(), q[:, :RANK] * signs, rtol=0, atol=bound)
        torch.testing.assert_close(layer.lora_A.detach(), signs.unsqueeze(-1) * r[:RANK], rtol=0, atol=bound)


def test_olora_has_no_negative_diagonal_where_columns_depend_on_each_other() -> None:
    for seed in range(8):
        layer = adapters.LoRALinear(nn.Linear(16, 12), rank=3)
        with torch.no_grad():
            weight = layer.base_layer.weight.copy_(cases.gaussian(12, 16, seed=seed))
            weight[:, 2] = weight[:, 1] + 1e-7 * weight[:, 2]
        adapters.init_lora_(nn.Sequential(layer), "olora")
        assert (layer.lora_A.diagonal() >= 0).all()


def gradients(net: nn.Module) -> list[Tensor]:
    """Mean gradients of the base weights, by autograd alone, with the adapters as they are (B = 0)."""
    params = [layer.base_layer.weight.requires_grad_() for layer in layers(net)]
    mean = sum(loss(net, batch) for batch in batches()) / len(batches())
    grads = torch.autograd.grad(mean, params)  # type: ignore[arg-type]
    for p in params:
        p.requires_grad_(False)
    return list(grads)


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_lora_ga_takes_vectors_of_the_mean_gradient(at_once: int | None) -> None:
    net = model()
    found = gradients(net)
    adapters.init_lora_(net, "lora_ga", batches=iter(batches()), loss_fn=loss, gamma=9.0, at_once=at_once)
    for layer, gradient in zip(layers(net), found, strict=True):
        u, _, vh = triplets(gradient, 2 * RANK)
        size = gradient.shape[0] ** 0.25 / 3.0
        bound = size * turning(gradient, 2 * RANK)
        assert bound < size * 1e-3  # or there would be nothing to see
        torch.testing.assert_close(layer.lora_A.detach(), size * vh[:RANK], rtol=0, atol=bound)
        torch.testing.assert_close(layer.lora_B.detach(), size * u[:, RANK:], rtol=0, atol=bound)


def test_lora_sb_starts_with_the_first_step_of_full_training() -> None:
    net = model()
    for seed, layer in enumerate(layers(net)):  # whose gradients have signs of many directions
        layer.base_layer.weight.data.copy_(cases.gaussian(*layer.base_layer.weight.shape, seed=seed) / 4)
    found = gradients(net)
    adapters.init_lora_(net, "lora_sb", batches=batches(), loss_fn=loss, eta=0.25)
    for layer, gradient in zip(layers(net), found, strict=True):
        step = -0.25 * gradient.sign()
        u, s, vh = triplets(step, RANK)
        product = SCALE * layer.lora_B @ layer.lora_S @ layer.lora_A
        bound = tolerance.norm(step) * turning(step, RANK)
        assert bound < float(s[-1])  # or there would be nothing to see
        torch.testing.assert_close(product.detach(), (u * s) @ vh, rtol=0, atol=bound)
        eye = torch.eye(RANK, dtype=torch.float64)
        bound = tolerance.orthonormality(torch.float64, RANK)
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.mT, eye, rtol=0, atol=bound)
        torch.testing.assert_close(layer.lora_B.mT @ layer.lora_B, eye, rtol=0, atol=bound)


def test_lora_xs_freezes_the_leading_part_of_the_weight() -> None:
    net = model()
    adapters.init_lora_(net, "lora_xs", std=0.5, seed=4)
    squares = [layer.lora_S.detach() for layer in layers(net)]
    for layer in layers(net):
        u, s, vh = triplets(layer.base_layer.weight, RANK)
        bound = turning(layer.base_layer.weight, RANK)
        torch.testing.assert_close(layer.lora_B.detach(), u * s, rtol=0, atol=bound)
        torch.testing.assert_close(layer.lora_A.detach(), vh, rtol=0, atol=bound)
    drawn = torch.stack(squares)
    assert 0.25 < float(drawn.std()) < 1.0 and not torch.equal(squares[0], squares[2])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [f"{i}.lora_S" for i in range(3)]


def test_eva_finds_the_directions_of_the_inputs() -> None:
    """Of the first layer all inputs are known; they fit into what the search keeps, so nothing is lost on the way."""
    net = model()
    scales = 0.5 ** torch.arange(N, dtype=torch.float64)
    inputs = [scales * batch for batch in batches(4)]
    adapters.init_lora_(net, "eva", batches=inputs, loss_fn=loss, cosine=1.0, oversample=N)
    seen = torch.cat(inputs)
    u, _, _ = triplets(seen.mT, RANK)
    bound = len(inputs) * turning(seen, RANK)
    torch.testing.assert_close(net[0].lora_A.detach(), u.mT, rtol=0, atol=bound)
    assert not net[0].lora_B.any()


def test_eva_ends_when_the_directions_have_settled() -> None:
    taken: list[int] = []

    def counted(net: nn.Module, batch: Tensor) -> Tensor:
        taken.append(1)
        return loss(net, batch)

    adapters.init_lora_(model(), "eva", batches=[batches()[0]] * 9, loss_fn=counted)
    assert len(taken) == 2  # the second time shows that nothing turns


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_and_layers_of_one_shape_are_as_alone(method: str) -> None:
    results = []
    for _ in range(2):
        net = model(torch.float32)
        adapters.init_lora_(net, method, seed=7, **data(method, torch.float32))
        results.append({name: p.detach() for name, p in net.named_parameters()})
    assert all(torch.equal(one, results[1][name]) for name, one in results[0].items())
    if method in ("pissa", "olora"):
        alone = model(torch.float32)[2:]
        adapters.init_lora_(alone, method, seed=7)
        assert torch.equal(alone[0].lora_B, results[0]["2.lora_B"])
        assert torch.equal(alone[0].lora_A, results[0]["2.lora_A"])


def test_another_seed_is_another_search() -> None:
    found = []
    for seed in (1, 2):
        net = model()
        adapters.init_lora_(net, "pissa", seed=seed, oversample=0, niter=0)
        found.append(net[0].lora_B.detach())
    assert not torch.allclose(*found)


@pytest.mark.parametrize("method", METHODS)
def test_training_modes_gradients_and_scales_are_as_before(method: str) -> None:
    net = model().train()
    net[1].eval()
    weight = net[0].base_layer.weight
    weight.grad = kept = torch.ones_like(weight)
    adapters.init_lora_(net, method, **data(method))
    assert net[0].training and not net[1].training and weight.grad is kept and not weight.requires_grad
    assert all(layer.scaling == SCALE for layer in layers(net)) and not weight._backward_hooks


def test_products_that_the_adapters_hold_are_not_part_of_the_gradient() -> None:
    results = []
    for value in (0.0, 1.0):
        net = model()
        for layer in layers(net):
            nn.init.constant_(layer.lora_B, value)
        adapters.init_lora_(net, "lora_ga", batches=batches(), loss_fn=loss)
        results.append(net[0].lora_A.detach())
    assert torch.equal(*results)


def test_a_square_trains_merges_and_folds() -> None:
    net = model()
    adapters.init_lora_(net, "lora_xs", std=0.5)
    x = batches()[0]
    out = net(x)
    out.square().sum().backward()
    layer = net[0]
    assert layer.lora_S.grad is not None and layer.lora_S.grad.any() and layer.lora_A.grad is None
    (pair, *_) = adapters.find_pairs(net)
    assert torch.equal(pair.b, layer.lora_B @ layer.lora_S) and not pair.trained
    assert adapters.fold_square_(net) == 3 and adapters.fold_square_(net) == 0
    bound = tolerance.gamma(4 * N, torch.float64) * float(out.detach().abs().max()) * N
    torch.testing.assert_close(net(x).detach(), out.detach(), rtol=0, atol=bound)
    assert [name for name, p in net.named_parameters() if p.requires_grad][:2] == ["0.lora_A", "0.lora_B"]
    merged = nn.Sequential(*(layer.merge() for layer in net))
    torch.testing.assert_close(merged(x).detach(), out.detach(), rtol=0, atol=bound)
