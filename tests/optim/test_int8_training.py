"""Training with weights in 8 bits: by which optimizers, how layers are saved and copied, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from lowrank_core.ops.subspace_step.codecs import encode_moment
from lowrank_core.optim import (
    SCALE,
    ApolloAdamW,
    FiraAdamW,
    GaLoreAdamW,
    Int8Linear,
    QGaLoreAdamW,
    devices,
    estimate_state_bytes,
    param_groups,
)
from lowrank_core.optim.int8 import Int8Weight
from optim_cases import draw, same
from torch import nn

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (GaLoreAdamW, {}),
    (GaLoreAdamW, {"rank": None}),
    (GaLoreAdamW, {"moment_dtype": "int8", "proj_type": "full"}),
    (QGaLoreAdamW, {}),
    (FiraAdamW, {}),
    (ApolloAdamW, {}),
    (SCALE, {}),
]
every_optimizer = pytest.mark.parametrize(("kind", "keys"), OPTIMIZERS)


def model(dtype: torch.dtype = torch.float32, coded: bool = True, embedded: bool = False) -> nn.Sequential:
    """Two layers with a bias between them; the first one's input needs no gradient unless it is embedded."""
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    first = nn.Embedding(9, 24) if embedded else nn.Identity()
    layers = nn.Sequential(first, nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16, bias=False)).to(dtype)
    torch.random.set_rng_state(state)
    for at in (1, 3) if coded else ():
        layers[at] = Int8Linear.from_linear(layers[at])
    return layers


def made(kind: Any, params: Any, **keys: Any) -> Any:
    usual: dict[str, Any] = {} if kind is SCALE else {"rank": 4, "update_proj_gap": 3, "scale": 1.0}
    return kind(params, **{"lr": 0.02, **usual, **keys})


def train(layers: nn.Module, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = draw(8, 24, seed=step % 4).to(next(layers.parameters()).dtype)
        optimizer.zero_grad()
        loss = (layers(x) - x[:, :16].roll(1, 1)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(layers: nn.Module) -> list[Any]:
    return [copy.deepcopy(layers.state_dict())]


# ---- training ------------------------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_trains(kind: Any, keys: dict[str, Any], dtype: torch.dtype) -> None:
    """About as well as layers of floats."""
    ends = []
    for coded in (True, False):
        layers = model(dtype, coded)
        losses = train(layers, made(kind, layers.parameters(), **keys), range(60))
        ends.append(sum(losses[-5:]) / sum(losses[:5]))
    assert ends[0] < 0.9 and abs(ends[0] - ends[1]) < 0.1


@every_optimizer
def test_a_resume_is_bit_for_bit(kind: Any, keys: dict[str, Any]) -> None:
    layers = model()
    optimizer = made(kind, layers.parameters(), **keys)
    train(layers, optimizer, range(5))
    file = io.BytesIO()
    torch.save([layers.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = model()
    twin.load_state_dict(saved[0])
    other = made(kind, twin.parameters(), **keys)
    other.load_state_dict(saved[1])
    assert train(layers, optimizer, range(5, 10)) == train(twin, other, range(5, 10))
    assert same([layers.state_dict(), optimizer.state_dict()], [twin.state_dict(), other.state_dict()])


def test_a_step_is_the_one_of_floats_rounded() -> None:
    layers, plain = model(), model(coded=False)
    for at in (1, 3):
        plain[at].weight.data.copy_(layers[at].weight.decoded())
    ones = [made(GaLoreAdamW, one.parameters(), weight_decay=0.1) for one in (layers, plain)]
    for ours, theirs in zip(layers.parameters(), plain.parameters(), strict=True):
        ours.grad = draw(*ours.shape, seed=4)
        theirs.grad = ours.grad.clone()
    for one in ones:
        one.step()
    for at in (1, 3):
        steps = layers[at].weight.scales.repeat_interleave(256)[: plain[at].weight.numel()]
        off = (layers[at].weight.decoded() - plain[at].weight).abs().flatten()
        assert bool((off <= steps * (1 + 2**-10)).all()) and off.max() > 0.5 * steps.min()
    assert torch.equal(layers[1].bias, plain[1].bias)


def test_its_draws_are_not_those_of_the_moments() -> None:
    """A weight and a moment of the same numbers are rounded each for itself."""
    value, codes = draw(16, 16), torch.zeros(16, 16, dtype=torch.int8)
    coded = Int8Weight.of(value)
    coded.write(value, 7, 1)
    encode_moment(codes, torch.zeros(1), value, second=False, seed=7, step=1)
    assert float((coded.codes != codes).double().mean()) > 0.2


def test_groups_plan_and_estimate_know_it() -> None:
    layers = model(embedded=True)
    groups = param_groups(layers, rank=4, verbose=False)
    optimizer = GaLoreAdamW(groups, lr=0.01)
    rows = {row.name: row for row in optimizer.plan()}
    assert rows["1.weight"].projected and rows["1.weight"].reason == "stored in 8 bits" and not rows["1.bias"].projected
    for weight in layers.parameters():
        weight.grad = draw(*weight.shape)
    optimizer.step()
    assert optimizer.state_bytes() == estimate_state_bytes(layers, "galore", rank=4)
    assert optimizer.projections()[0].refreshes == 1
    held = sum(part.nbytes for part in (layers[1].weight.codes, layers[1].weight.scales))
    assert held == 24 * 40 + 4 * 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nonfinite_gradient_changes_nothing(value: float) -> None:
    layers = model()
    optimizer = made(GaLoreAdamW, layers.parameters())
    train(layers, optimizer, range(2))
    before = copy.deepcopy([layers.state_dict(), optimizer.state_dict()])
    layers[1].weight.grad[0, 0] = value
    optimizer.step()
    assert optimizer.skipped_steps == 1 and same(before, [layers.state_dict(), optimizer.state_dict()])


# ---- saving, copying, refusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "clone"])
def test_copies_are_of_their_own(how: str) -> None:
    layers = model()
    layers[1].weight.grad = draw(40, 24)
    twin = copy.deepcopy(layers) if how == "deepcopy" else pickle.loads(pickle.dumps(layers))
    if how == "clone":
        twin = copy.deepcopy(layers)
        twin[1].weight = nn.Parameter(layers[1].weight.detach().clone())
    weight = twin[1].weight
    assert isinstance(weight, Int8Weight) and isinstance(weight, nn.Parameter) and weight.requires_grad
    assert same(layers.state_dict(), twin.state_dict()) and (
        how != "deepcopy" or same(weight.grad, layers[1].weight.grad)
    )
    train(twin, made(GaLoreAdamW, twin.parameters()), range(2))
    assert not same(layers.state_dict(), twin.state_dict()) and same(layers.state_dict(), model().state_dict())


def test_weights_of_an_ordinary_layer_are_taken() -> None:
    layers, plain = model(), model(coded=False)
    with torch.no_grad():
        plain[1].weight.mul_(3)
    layers.load_state_dict(plain.state_dict())
    assert same(layers[1].state_dict(), Int8Linear.from_linear(plain[1]).state_dict())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("1.weight.codes"), r"Missing key\(s\) in state_dict: \"1.weight.codes\""),
        (lambda state: state.pop("1.bias"), r"Missing key\(s\) in state_dict: \"1.bias\""),
        (lambda state: state.update({"1.more": torch.ones(1)}), r"Unexpected key\(s\) in state_dict: \"1.more\""),
        (
            lambda state: state.update({"1.weight.codes": torch.zeros(3, dtype=torch.int8)}),
            r"`1.weight.codes` must be \(40, 24\) torch.int8, got \(3,\) torch.int8",
        ),
        (
            lambda state: state.update({"1.weight.scales": torch.zeros(4, dtype=torch.float64)}),
            r"`1.weight.scales` must be \(4,\) torch.float32, got \(4,\) torch.float64",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(edit: Any, message: str) -> None:
    layers = model()
    state = layers.state_dict()
    edit(state)
    with pytest.raises(RuntimeError, match=message):
        layers.load_state_dict(state)


def test_other_optimizers_are_refused() -> None:
    """They would add steps to the decoded weight that it never keeps."""
    layers = model()
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = kind(layers.parameters(), lr=0.1)
        for weight in layers.parameters():
            weight.grad = torch.ones(weight.shape)
        with pytest.raises(RuntimeError, match="must not write into a weight in 8 bits"):
            optimizer.step()
    assert same(layers[1].weight.codes, model()[1].weight.codes)


def test_where_there_are_no_kernels_a_step_is_refused() -> None:
    layers = model()
    optimizer = made(GaLoreAdamW, layers.named_parameters())
    with devices.without_kernels(), pytest.raises(NotImplementedError, match=r"`1\.weight` must be on the CPU"):
        train(layers, optimizer, range(1))


def test_copy_takes_values_and_reading_gives_them() -> None:
    weight = Int8Weight.of(draw(6, 8))
    other = draw(6, 8, seed=1)
    weight.copy_(other)
    assert torch.equal(weight.decoded(), Int8Weight.of(other).decoded())
    out = torch.empty(6, 8)
    out.copy_(weight)
    assert (
        torch.equal(out, weight.decoded()) and torch.equal(weight + 0, out) and repr(weight).startswith("Int8Weight(")
    )
    weight.copy_(Int8Weight.of(2 * other))
    assert torch.equal(weight.codes, Int8Weight.of(2 * other).codes)
    assert weight.to(torch.bfloat16).codes.data_ptr() != weight.codes.data_ptr()
    assert weight.to(torch.bfloat16).dtype == torch.bfloat16


def test_a_graph_from_before_a_step_does_not_pass() -> None:
    layer = Int8Linear.from_linear(nn.Linear(24, 40))
    y = layer(draw(5, 24)).sum()
    layer.weight.grad = draw(40, 24)
    GaLoreAdamW([layer.weight], rank=4).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
