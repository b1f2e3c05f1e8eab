"""LoRA-Pro: directions whose product is the projection of the whole gradient, and its steps by a plain statement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.adapters.equivalent import equivalent_directions
from testing import tolerance
from torch import Tensor, nn

F64 = torch.float64
UNIT = torch.finfo(F64).eps
M, N, R, S = 9, 7, 3, 1.7


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def factors() -> tuple[Tensor, Tensor, Tensor]:
    """G, A, B, well-conditioned: the identity and something small."""
    a, b = (
        0.2 * drawn(R, N, seed=2) + torch.eye(R, N, dtype=F64),
        0.2 * drawn(M, R, seed=3) + torch.eye(M, R, dtype=F64),
    )
    return drawn(M, N, seed=1), a, b


def directions(g: Tensor, a: Tensor, b: Tensor, s: float = S, ridge: float = UNIT) -> tuple[Tensor, Tensor]:
    return equivalent_directions(s * b.mT @ g, s * g @ a.mT, a, b, torch.tensor([[s]], dtype=F64), ridge)


def projected(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """P_T(G), by orthonormal bases of the spaces of columns of B and of rows of A."""
    (u, _), (v, _) = torch.linalg.qr(b), torch.linalg.qr(a.mT)
    left, right = u @ u.mT, v @ v.mT
    return left @ g + g @ right - left @ g @ right


# Chains of some ten products of up to M terms and two inverses, of condition numbers below 10: 100 times a product's.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 100 * tolerance.gamma(M, F64)}


def test_the_product_moves_as_the_projection_of_the_gradient() -> None:
    g, a, b = factors()
    ha, hb = directions(g, a, b)
    torch.testing.assert_close(S * b @ ha + S * hb @ a, projected(g, a, b), **CLOSE)


def test_any_x_gives_the_same_product() -> None:
    """The formulas with X drawn, and X moved by as much from the one that is taken."""
    g, a, b = factors()
    gram_b, gram_a = b.mT @ b, a @ a.mT
    inside = b @ torch.linalg.solve(gram_b, b.mT)
    for x in (torch.zeros(R, R, dtype=F64), drawn(R, R, seed=7), 10 * drawn(R, R, seed=8)):
        ha = torch.linalg.solve(gram_b, S * b.mT @ g) / S**2 + x @ a
        hb = (torch.eye(M, dtype=F64) - inside) @ (S * g @ a.mT) @ torch.linalg.inv(gram_a) / S**2 - b @ x
        torch.testing.assert_close(S * b @ ha + S * hb @ a, projected(g, a, b), **CLOSE)
        own_a, own_b = directions(g, a, b)
        torch.testing.assert_close(S * b @ (own_a + x @ a) + S * (own_b - b @ x) @ a, projected(g, a, b), **CLOSE)


def test_the_directions_are_those_nearest_to_loras_gradients() -> None:
    """First order: moving X moves hA by Z A and hB by -B Z, to which what is left must be orthogonal."""
    g, a, b = factors()
    ha, hb = directions(g, a, b)
    left = (ha - S * b.mT @ g) @ a.mT - b.mT @ (hb - S * g @ a.mT)
    torch.testing.assert_close(left, torch.zeros_like(left), **CLOSE)


def test_sylvesters_equation_holds() -> None:
    g, a, b = factors()
    ga = S * b.mT @ g
    direct = torch.linalg.solve(b.mT @ b, ga) / S**2
    x = (directions(g, a, b)[0] - direct) @ torch.linalg.pinv(a)
    left = b.mT @ b @ x + x @ a @ a.mT + direct @ a.mT
    torch.testing.assert_close(left, torch.zeros_like(left), **CLOSE)


@pytest.mark.parametrize("ridge", [UNIT, 0.1])
def test_the_step_descends_by_the_square_of_what_it_follows(ridge: float) -> None:
    g, a, b = factors()
    ha, hb = directions(g, a, b, ridge=ridge)
    inner = float((S * b.mT @ g * ha).sum() + (S * g @ a.mT * hb).sum())
    square = float(projected(g, a, b).square().sum())
    assert inner == pytest.approx(square, rel=CLOSE["atol"]) if ridge == UNIT else 0 <= inner <= square


def test_the_split_into_factors_does_not_count_to_first_order() -> None:
    g, a, b = factors()
    turn = torch.eye(R, dtype=F64) + 0.3 * drawn(R, R, seed=5)
    one, other = (a, b), (torch.linalg.solve(turn, a), b @ turn)
    found = []
    for inner, outer in (one, other):
        ha, hb = directions(g, inner, outer)
        found.append(outer @ ha + hb @ inner)
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_at_zero_b_moves_alone_by_the_gradient_within_the_rows_of_a() -> None:
    g, a, b = factors()
    ha, hb = directions(g, a, torch.zeros_like(b))
    assert not bool(ha.any())
    torch.testing.assert_close(hb, (S * g @ a.mT) @ torch.linalg.inv(a @ a.mT) / S**2, **CLOSE)
    ha, hb = directions(g, torch.zeros_like(a), torch.zeros_like(b))
    assert not bool(ha.any()) and not bool(hb.any())
    assert all(not bool(h.any()) for h in directions(g, a, b, s=0.0))


def test_what_a_factor_hardly_has_is_damped() -> None:
    """A singular value d of B is divided by d² + ridge tr BᵀB, at most 1 / (2 sqrt(ridge tr)); X is within as much."""
    g, a, b = factors()
    b[:, 2] = b[:, 1] + 1e-6 * drawn(M, seed=6)
    ridge = 1e-4
    ha, hb = directions(g, a, b, ridge=ridge)
    largest = float(g.norm()) / (2 * S * (ridge * float(b.square().sum())) ** 0.5)
    assert float(ha.norm()) + float(hb.norm()) < 10 * largest < float(directions(g, a, b, ridge=1e-30)[0].norm())


# ---- the optimizer -----------------------------------------------------------------------------------------------


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        adapters.LoRALinear(nn.Linear(N, M), rank=R, alpha=6), nn.LayerNorm(M), adapters.LoRALinear(nn.Linear(M, 4), 2)
    )


def plain_directions(ga: Tensor, gb: Tensor, a: Tensor, b: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """By a solve of Sylvester's equation as one linear system; X = 0 and hA = 0 at B = 0."""
    c, d, eye = b.mT @ b, a @ a.mT, torch.eye(len(a), dtype=F64)
    if not bool(b.any()):
        return torch.zeros_like(a), gb @ torch.linalg.inv(d) / s**2
    direct = torch.linalg.pinv(c, rcond=1e-12) @ ga / s**2
    system = torch.kron(c, eye) + torch.kron(eye, d)
    x = torch.linalg.solve(system, -(direct @ a.mT).flatten()).view_as(c)
    outside = gb - b @ torch.linalg.pinv(c, rcond=1e-12) @ b.mT @ gb
    return direct + x @ a, outside @ torch.linalg.inv(d) / s**2 - b @ x


class PlainAdam:
    def __init__(self) -> None:
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        quotient: Tensor = (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)) ** 0.5 + 1e-8)
        return quotient


@pytest.mark.parametrize("moments", ["factors", "full"])
def test_steps_from_b_of_zeros_are_those_of_the_plain_statement(moments: str) -> None:
    net = model().double()
    layers, lr, steps = [net[0], net[2]], 0.05, 5
    plain = [[layer.lora_A.detach().clone(), layer.lora_B.detach().clone()] for layer in layers]
    rules = [(PlainAdam(), PlainAdam()) for _ in layers]
    norm, norm_rule = net[1].weight.detach().clone(), PlainAdam()
    optimizer = adapters.LoRAProAdamW(net, lr=lr, weight_decay=0.1, moments=moments)
    for step in range(steps):
        optimizer.zero_grad()
        x = drawn(5, N, seed=step)
        net(x).square().mean().backward()
        for layer, pair, rule in zip(layers, plain, rules, strict=True):
            a, b, s = *pair, layer.scaling
            ha, hb = plain_directions(layer.lora_A.grad, layer.lora_B.grad, a, b, s)
            if moments == "full":
                taken = rule[0](s * (b @ ha + hb @ a))
                ha, hb = plain_directions(s * b.mT @ taken, s * taken @ a.mT, a, b, s)
            else:
                ha, hb = rule[0](ha), rule[1](hb)
            pair[:] = (1 - lr * 0.1) * a - lr * ha, (1 - lr * 0.1) * b - lr * hb
        norm = (1 - lr * 0.1) * norm - lr * norm_rule(net[1].weight.grad)
        optimizer.step()
        if step == 0:
            assert all(bool(layer.lora_B.any()) for layer in layers)
    for layer, pair in zip(layers, plain, strict=True):
        for found, want in zip((layer.lora_A, layer.lora_B), pair, strict=True):
            # An inverse of BᵀB, at lr or below, amplifies rounding by its condition; the ridge is below that.
            torch.testing.assert_close(found.detach(), want, rtol=1e7 * UNIT, atol=1e7 * UNIT)
    torch.testing.assert_close(net[1].weight.detach(), norm, **CLOSE)


def test_the_state_is_what_the_moments_say() -> None:
    for moments, kept in (("factors", R * (M + N) + 2 * (M + 4)), ("full", M * N + 4 * M)):
        net = model()
        optimizer = adapters.LoRAProAdamW(net, moments=moments)
        net(torch.ones(2, N)).square().mean().backward()
        optimizer.step()
        counts = 6 * 4
        assert optimizer.state_bytes() == optimizer.planned_state_bytes() == 2 * 4 * (kept + 2 * M) + counts
    half = adapters.LoRAProAdamW(model(), moments="full", moment_dtype="bfloat16")
    assert half.planned_state_bytes() == 2 * 2 * (M * N + 4 * M + 2 * M) + counts


def test_a_state_of_other_moments_is_refused() -> None:
    net = model()
    optimizer = adapters.LoRAProAdamW(net, moments="full")
    net(torch.ones(2, N)).square().mean().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="load_state_dict: "):
        adapters.LoRAProAdamW(net, moments="factors").load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_bfloat16_weights_and_small_moments_train(dtype: str) -> None:
    net = model().to(torch.bfloat16)
    optimizer = adapters.LoRAProAdamW(net, lr=0.02, moments="full", moment_dtype=dtype, rounding="stochastic")
    x, losses = drawn(8, N, seed=0).bfloat16(), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(x).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"moments": "half"}, "LoRAProAdamW: `moments` must be"),
        ({"ridge": 0}, "LoRAProAdamW: `ridge` must be a number > 0, or None, got 0"),
        ({"ridge": float("nan")}, "LoRAProAdamW: `ridge` must be a number > 0, or None, got nan"),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapters.LoRAProAdamW(model(), **keys)


def test_adalora_is_refused() -> None:
    net = nn.Sequential(nn.Linear(N, M))
    adapters.AdaLoRA(net, total_steps=4, target_rank=1, init_rank=2)
    with pytest.raises(
        ValueError, match=r"LoRAProAdamW: `model` must have adapters of two factors, got AdaLoRA's in `0`"
    ):
        adapters.LoRAProAdamW(net)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_float32_directions_are_off_by_a_rounding_of_the_gradients(size: float) -> None:
    """What one rounding of gA and gB would move: of the product at most the unit times the condition of the factors."""
    g, a, b = (x.float().double() for x in factors())
    b = size * b
    ga, gb = S * b.mT @ g, S * g @ a.mT
    given, scale = (ga, gb, a, b), torch.full((1, 1), S, dtype=F64)
    exact = equivalent_directions(*given, scale, 1e-7)
    found = equivalent_directions(*(x.float() for x in given), scale, 1e-7)
    assert {x.dtype for x in found} == {torch.float32}
    condition = max(float(torch.linalg.cond(x)) for x in (a, b)) ** 2
    products = [S * (b @ ha.double() + hb.double() @ a) for ha, hb in (exact, found)]
    limit = 20 * tolerance.UNIT[torch.float32] * condition * float(g.norm())
    assert float((products[0] - products[1]).norm()) <= limit < 1e-2 * float(products[0].norm())
