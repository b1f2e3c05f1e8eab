"""`fused_backward` and torch's GradScaler, which looks for gradients in `.grad`."""

from __future__ import annotations

import pytest
import torch
from layerwise_runs import backward, every_accumulating, every_stepping_inside, keys, taken, train
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import Case, Zoo, loss_of, same, snapshot
from torch import Tensor, nn


def scaler(scale: float = 2.0**10) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


@every_accumulating
@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_loop_with_a_scaler_stays_as_it_is(case: Case, unscales: bool, passes: int) -> None:
    """Powers of two scale exactly: the bits are those without a scaler."""
    model, plain = Zoo(), Zoo()
    optimizer, reference = case.make(model.parameters()), case.make(plain.parameters())
    fused_backward(model, optimizer)
    fused_backward(plain, reference)
    scaling = scaler()
    for step in range(6):
        bad = step == 3
        for number in range(passes):
            loss = loss_of(model, passes * step + number) / passes
            scaling.scale(loss * torch.inf if bad and number == 0 else loss).backward()
        assert taken(model)
        if unscales:
            scaling.unscale_(optimizer)
        before = [param.detach().clone() for param in model.parameters()]
        scaling.step(optimizer)
        scaling.update()
        assert same(before, [param.detach() for param in model.parameters()]) == bad
        optimizer.zero_grad()
        if not bad:
            backward(plain, step, passes)
            reference.step()
    assert scaling.get_scale() == 2.0**9
    assert optimizer.skipped_steps == 1
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("clip", ["whole", "projected"])
def test_clipping_sees_unscaled_gradients(unscales: bool, passes: int, clip: str) -> None:
    norms = []
    for scale in (2.0**8, None):
        model = Zoo()
        optimizer = GaLoreAdamW(model.parameters(), rank=4, update_proj_gap=3)
        handle = fused_backward(model, optimizer, max_norm=0.5, clip=clip)
        scaling = None if scale is None else scaler(scale)
        found = []
        for step in range(5):
            for number in range(passes):
                loss = loss_of(model, passes * step + number) / passes
                (loss if scaling is None else scaling.scale(loss)).backward()
            if scaling is None:
                optimizer.step()
            else:
                if unscales:
                    scaling.unscale_(optimizer)
                scaling.step(optimizer)
                scaling.update()
            found.append((handle.last_norm, handle.norm_error))
        norms.append(found)
    assert norms[0] == norms[1]


def test_a_scaler_finds_what_is_not_finite_in_any_pass_and_parameter() -> None:
    for name in ("up.weight", "gain", "embed.weight"):
        for bad in (0, 1):
            model = Zoo()
            optimizer = GaLoreAdamW(model.parameters(), rank=4)
            fused_backward(model, optimizer)
            train(model, optimizer, 2)
            scaling = scaler()
            spoiled = dict(model.named_parameters())[name]
            for number in range(2):
                hook = spoiled.register_hook(lambda grad, now=number == bad: grad * torch.nan if now else grad)
                scaling.scale(loss_of(model, number)).backward()
                hook.remove()
            scaling.step(optimizer)
            scaling.update()
            assert scaling.get_scale() == 2.0**9, (name, bad)


class Scale(nn.Module):
    """A model whose parameters are all of one element, or of none but in half precision."""

    def __init__(self, *params: Tensor) -> None:
        super().__init__()
        self.params = nn.ParameterList(params)

    def forward(self) -> Tensor:
        return sum((param.float() ** 2).sum() for param in self.params)


@pytest.mark.parametrize(
    "params",
    [(torch.tensor(2.0),), (torch.empty(0, 3), torch.ones(1)), (torch.ones(4, 3, dtype=torch.bfloat16),)],
    ids=["0-D", "one element", "bfloat16"],
)
def test_whatever_parameter_carries_the_flag(params: tuple[Tensor, ...]) -> None:
    weights = []
    for scaling in (scaler(), None):
        model = Scale(*(param.clone() for param in params))
        optimizer = GaLoreAdamW(model.parameters(), rank=None)
        fused_backward(model, optimizer)
        for _ in range(3):
            if scaling is None:
                model().backward()
                optimizer.step()
            else:
                scaling.scale(model()).backward()
                scaling.unscale_(optimizer)
                scaling.step(optimizer)
                scaling.update()
        weights.append([param.detach() for param in model.parameters()])
    assert same(*weights)


def test_an_overflow_does_not_raise_under_a_scaler() -> None:
    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4, nonfinite="raise")
    fused_backward(model, optimizer)
    scaling = scaler()
    scaling.scale(loss_of(model, 0) * torch.inf).backward()
    scaling.step(optimizer)
    scaling.update()
    assert scaling.get_scale() == 2.0**9 and optimizer.skipped_steps == 1


@every_stepping_inside
def test_a_scaler_is_refused_where_steps_are_taken_inside_backward(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters(), **keys(case))
    fused_backward(model, optimizer)
    scaling = scaler()
    scaling.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="step: a GradScaler must not be used with a method that steps inside"):
        scaling.step(optimizer)


def test_what_multiplies_every_gradient_multiplies_what_is_held() -> None:
    model, plain = Zoo(), Zoo()
    optimizer, reference = (GaLoreAdamW(one.parameters(), rank=4, update_proj_gap=3) for one in (model, plain))
    fused_backward(model, optimizer)
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            backward(one, step, 1)
            for param in one.parameters():
                if param.grad is not None:
                    param.grad.mul_(0.25)
            its.step()
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


def test_clipping_by_torch_is_refused() -> None:
    model = Zoo()
    fused_backward(model, GaLoreAdamW(model.parameters(), rank=4))
    backward(model, 0, 1)
    with pytest.raises(NotImplementedError):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
