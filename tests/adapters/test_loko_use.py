"""LoKO in a run: goes on to the bit, skips what is not finite, refuses what does not fit."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from loko_cases import CLASSES, batch, model, theta, variances
from lowrank_core import adapters
from torch import Tensor


@pytest.mark.parametrize("policy", ["ggn", "ema_pre", "scalar"])
def test_a_run_goes_on_to_the_bit(policy: str) -> None:
    net = model(torch.float32)
    optimizer = adapters.LoKO(net, policy=policy, fisher="monte_carlo")
    for step in range(3):
        x, y = batch(2, torch.float32, seed=step)
        optimizer.step(net(x), y)
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = model(torch.float32, seed=9)
    other.load_state_dict(saved["model"])
    again = adapters.LoKO(other, policy=policy, fisher="monte_carlo")
    again.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        x, y = batch(2, torch.float32, seed=step)
        optimizer.step(net(x), y)
        again.step(other(x), y)
    assert torch.equal(theta(net), theta(other))
    assert torch.equal(variances(optimizer, net), variances(again, other))


@pytest.mark.parametrize("policy", ["ggn", "ema_pre"])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_what_is_not_finite_changes_nothing(policy: str, nonfinite: str) -> None:
    net, (x, y) = model(torch.float32), batch(2, torch.float32)
    optimizer = adapters.LoKO(net, policy=policy, nonfinite=nonfinite, batch="sequential")
    optimizer.step(net(x), y)
    kept = theta(net), variances(optimizer, net), copy.deepcopy(optimizer.state_dict()["filter"]["noise"])
    net[0].lora_B.register_hook(lambda grad: grad * torch.nan)
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="must be finite"):
            optimizer.step(net(x), y)
    else:
        optimizer.step(net(x), y)
        assert optimizer.skipped_steps == 2  # one for each sample
    assert torch.equal(kept[0], theta(net)) and torch.equal(kept[1], variances(optimizer, net))
    noise = optimizer.state_dict()["filter"]["noise"]
    assert noise.keys() == kept[2].keys() and all(torch.equal(noise[key], kept[2][key]) for key in noise)


def spoiled(outputs: Tensor, where: Tensor, value: float) -> Tensor:
    """`outputs` with `value` in place of one class each of those of `where`; no gradient goes that way."""
    mask = torch.zeros_like(outputs, dtype=torch.bool)
    mask[..., 0] = where
    return torch.where(mask, value, outputs)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("shape", [(4, CLASSES), (2, 2, CLASSES)])
@pytest.mark.parametrize("fisher", ["auto", "full", "lumped", "monte_carlo"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_skipped(
    value: float, fisher: str, shape: tuple[int, ...], nonfinite: str
) -> None:
    """At a token that counts they skip or raise; at one that does not they are nothing to the step."""
    net, (x, y) = model(), batch(4)
    optimizer = adapters.LoKO(net, fisher=fisher, nonfinite=nonfinite)
    optimizer.step(net(x).view(shape), y.view(shape[:-1]))
    kept = theta(net), variances(optimizer, net)
    counts = torch.tensor([True, True, True, False]).view(shape[:-1])
    bad = torch.tensor([False, True, False, False]).view(shape[:-1])
    targets = torch.where(counts, y.view(shape[:-1]), -100)
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="the observation must be finite"):
            optimizer.step(spoiled(net(x).view(shape), bad, value), targets)
    else:
        optimizer.step(spoiled(net(x).view(shape), bad, value), targets)
        assert optimizer.skipped_steps == 1
    assert torch.equal(kept[0], theta(net)) and torch.equal(kept[1], variances(optimizer, net))
    twin, twins = copy.deepcopy((net, optimizer))
    optimizer.step(spoiled(net(x).view(shape), ~counts, value), targets)
    twins.step(twin(x).view(shape), targets)
    assert optimizer.skipped_steps == twins.skipped_steps == (nonfinite == "skip")
    assert torch.equal(theta(net), theta(twin)) and not torch.equal(theta(net), kept[0])


def test_one_sample_without_probabilities_is_skipped_alone() -> None:
    found = []
    for bad in (False, True):
        net, (x, y) = model(), batch(3)
        optimizer = adapters.LoKO(net, batch="sequential")
        outputs = spoiled(net(x), torch.tensor([False, True, False]), math.nan) if bad else net(x)
        optimizer.step(outputs, y if bad else torch.tensor([y[0], -100, y[2]]))
        assert optimizer.skipped_steps == bad
        found.append(theta(net))
    assert torch.equal(*found)


def test_a_closure_may_return_what_is_observed() -> None:
    """The forward pass may be inside, recorded or not."""
    net, (x, y) = model(), batch(2)
    twin = copy.deepcopy(net)
    optimizer, closed = adapters.LoKO(net), adapters.LoKO(twin)

    def observe() -> tuple[Tensor, Tensor]:
        with closed.recording():
            return twin(x), y

    with optimizer.recording():
        outputs = net(x)
    found = [(optimizer.step(outputs, y), theta(net)), (closed.step(observe), theta(twin))]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    with pytest.raises(ValueError, match="`outputs` must be a closure of two tensors, or of a loss, got 'one of 3'"):
        closed.step(lambda: (x, y, y))


def test_recorded_inputs_change_nothing_but_the_time() -> None:
    found = []
    for recorded in (False, True):
        net, (x, y) = model(), batch(2)
        optimizer = adapters.LoKO(net)
        if recorded:
            with optimizer.recording():
                outputs = net(x)
        else:
            outputs = net(x)
        optimizer.step(outputs, y)
        found.append(theta(net))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_classes_of_any_integer_dtype_are_the_same(dtype: torch.dtype) -> None:
    found = []
    for kind in (torch.int64, dtype):
        net, (x, y) = model(), batch(3)
        adapters.LoKO(net).step(net(x), y.to(kind))
        found.append(theta(net))
    assert torch.equal(*found)


def test_a_copy_goes_on_by_itself() -> None:
    net, (x, y) = model(), batch(2)
    optimizer = adapters.LoKO(net, policy="ema_pre")
    optimizer.step(net(x), y)
    twin, twins = copy.deepcopy((net, optimizer))
    optimizer.step(net(x), y)
    twins.step(twin(x), y)
    assert torch.equal(theta(net), theta(twin))


def test_outputs_of_autocast_are_taken() -> None:
    net, (x, y) = model(torch.float32), batch(4, torch.float32)
    optimizer = adapters.LoKO(net)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(x)
        losses.append(float(optimizer.step(outputs, y)))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"policy": "none"}, "`policy` must be"),
        ({"batch": "both"}, "`batch` must be"),
        ({"policy": "fixed", "batch": "mean"}, '`batch` must be "sequential" where `policy` estimates the noise'),
        ({"p0": 0.0}, "`p0` must be a number > 0, or None, got 0.0"),
        ({"process_noise": -1}, "`process_noise` must be a number >= 0, got -1"),
        ({"kl_limit": 0}, "`kl_limit` must be > 0 or None, got 0"),
        ({"fisher": "some"}, "`fisher` must be"),
        ({"draws": 0}, "`draws` must be an int >= 1, got 0"),
        ({"policy": "ema_pre", "policy_options": {"beta": 2.0}}, "`beta` must be in"),
        ({"nonfinite": "ignore"}, "`nonfinite` must be"),
        ({"policy_options": {"epsilon": -1.0}}, "`epsilon` must be >= 0, got -1.0"),
        ({"policy_options": {"epsilon": 0.1}, "fisher": "monte_carlo"}, "`policy_options` must leave out epsilon"),
        ({"batch": "mean", "fisher": "monte_carlo"}, "where `fisher` is 'monte_carlo', got 'mean', but drawn rows are"),
        ({"batch": "mean", "fisher": "lumped"}, "where `fisher` is 'lumped', got 'mean', but each sample keeps"),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapters.LoKO(model(), **keys)


@pytest.mark.parametrize(
    ("policy", "own"), [("ggn", "epsilon"), ("fixed", "r"), ("ema_pre", "beta, r0"), ("innovation", "beta, r0, floor")]
)
def test_options_that_a_policy_lacks_are_refused(policy: str, own: str) -> None:
    with pytest.raises(TypeError, match=f"options of '{policy}' must be among {own}, got nonsense; leave it out"):
        adapters.LoKO(model(), policy=policy, policy_options={"nonsense": 3})


def test_a_mean_is_refused_where_auto_lumps_or_draws() -> None:
    """What "auto" means is known at the step; nothing has changed then."""
    for classes, shape, kind in ((70, (4,), "lumped"), (CLASSES, (2, 2), "monte_carlo")):
        net, (x, y) = model(classes=classes), batch(4)
        optimizer, before = adapters.LoKO(net, batch="mean"), theta(net)
        with pytest.raises(ValueError, match=f"step: `batch` must be .* where `fisher` is '{kind}', got 'mean'"):
            optimizer.step(net(x).view(*shape, classes), y.view(shape))
        assert torch.equal(theta(net), before)
        damped = adapters.LoKO(net, policy_options={"epsilon": 0.1})
        if kind == "monte_carlo":
            with pytest.raises(ValueError, match=r'step: `policy_options` must leave out .*; pass fisher="lumped"'):
                damped.step(net(x).view(*shape, classes), y.view(shape))
        else:
            damped.step(net(x), y)


def test_what_does_not_fit_is_refused_by_a_sentence() -> None:
    net, (x, y) = model(), batch(2)
    optimizer = adapters.LoKO(net)
    cases: list[tuple[Any, Any, str]] = [
        (net(x), y[:1], r"`targets` must be \[2\] for `outputs` of shape \[2, 3\], got shape \[1\]"),
        (net(x)[0], y[0], r"`outputs` must be \[B, C\]"),
        (net(x), torch.full((2,), -100), "`targets` must have a class that counts"),
        (net(x), torch.zeros(2), r"`targets` must be \[2, 3\]"),
        (net(x), torch.tensor([0, 3]), "`targets` must be classes from 0 to 2, or -100, got 3"),
        (net(x), y.to("meta"), "`targets` must be on cpu, got 'meta'"),
        (net(x), torch.tensor([-1, 1]), "`targets` must be classes from 0 to 2, or -100, got -1"),
    ]
    for outputs, targets, message in cases:
        with pytest.raises(ValueError, match=message):
            optimizer.step(outputs, targets)
    with pytest.raises(TypeError, match="`targets` must be a tensor, got list"):
        optimizer.step(net(x), [0, 1])
    with pytest.raises(TypeError, match="`outputs` must be a tensor, got list"):
        optimizer.step([1.0])
    with pytest.raises(TypeError, match=r"`targets` must be integers or floats, got torch.bool"):
        optimizer.step(net(x), torch.tensor([True, False]))
    groups = [{"params": [p], "lr": float(i + 1)} for i, p in enumerate(net.parameters()) if p.requires_grad]
    with pytest.raises(ValueError, match="`lr` must be the same in all groups, which are one filter"):
        adapters.LoKO(groups).step(net(x), y)
    with pytest.raises(ValueError, match="must be made of a module, got parameters"), adapters.LoKO(groups).recording():
        pass
    with pytest.raises(ValueError, match="`weight_decay` must be left out of its groups"):
        adapters.LoKO([{**groups[0], "weight_decay": 0.1}])
    other = adapters.LoKO(model(), policy="fixed")
    with pytest.raises(ValueError, match="`state_dict` must be of policy 'fixed', got one of 'ggn'"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"`outputs` must be \[B, C\] with C up to 64"):
        other.step(net(x)[:, None], y[:, None])
