"""`fused_backward` and what else autograd does."""

from __future__ import annotations

import pytest
import torch
from layerwise_runs import backward, every_accumulating, taken, train
from lowrank_core.optim import FiraAdamW, GaLoreAdamW, LowRankOptimizer, fused_backward
from optim_cases import Case, Zoo, loss_of, same, snapshot
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def pair(**keys: object) -> list[tuple[Zoo, LowRankOptimizer]]:
    """A model whose gradients are taken, and one that trains ordinarily."""
    found = []
    for _ in range(2):
        model = Zoo()
        found.append((model, GaLoreAdamW(model.parameters(), lr=0.02, rank=4, update_proj_gap=3, scale=1.0)))
    fused_backward(*found[0], **keys)  # type: ignore[arg-type]
    return found


class Checkpointed(nn.Module):
    """`Zoo`, parts of which run once more inside backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.zoo, self.reentrant = Zoo(), reentrant

    def again(self, part: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(part, x, use_reentrant=self.reentrant)

    def forward(self, tokens: Tensor) -> Tensor:
        zoo = self.zoo
        x = zoo.embed(tokens)
        x = x + self.again(zoo.conv, x.mT).mT
        x = x + self.again(nn.Sequential(zoo.up, nn.Tanh(), zoo.down), x)
        x = self.again(zoo.square, x) * zoo.gain + zoo.empty.sum()
        return self.again(zoo.head, x)


@every_accumulating
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(case: Case, reentrant: bool) -> None:
    """Reentrant: backward runs inside backward."""
    models = [Checkpointed(reentrant), Checkpointed(reentrant)]
    # The tied matrix' two gradients are added in its subspace, which rounds otherwise: the next test has it.
    left_out = "embed" if reentrant else "nothing"
    optimizers = [case.make([p for name, p in one.named_parameters() if left_out not in name]) for one in models]
    fused_backward(models[0], optimizers[0])
    losses: list[list[float]] = []
    for model, optimizer in zip(models, optimizers, strict=True):
        losses.append([])
        for step in range(6):
            model.zero_grad()
            losses[-1].append(backward(model, step, 1))
            optimizer.step()
    assert losses[0] == losses[1]
    assert same(*(snapshot(model, optimizer) for model, optimizer in zip(models, optimizers, strict=True)))


def test_a_tied_matrix_gets_one_gradient_from_each_backward_inside_backward() -> None:
    model, plain = Checkpointed(True), Checkpointed(True)
    weights = [one.zoo.embed.weight for one in (model, plain)]
    optimizer, reference = (GaLoreAdamW([weight], lr=0.02, rank=4, update_proj_gap=9) for weight in weights)
    fused_backward(model, optimizer)
    for step in range(4):
        for one, its in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            backward(one, step, 1)
            if one is model and step:
                assert optimizer._source.held[weights[0], None].passes == 2
            its.step()
    bound = 4 * (16 + 2) * 2.0**-24  # of a low-rank gradient in each step; Adam's quotient is off by as much
    assert (weights[0] - weights[1]).abs().max() <= bound * weights[1].abs().max()


def test_a_tied_matrix_that_steps_inside_backward_is_refused_there() -> None:
    model = Checkpointed(True)
    fused_backward(model, FiraAdamW(model.named_parameters(), rank=4, nonfinite="raise"))
    with pytest.raises(RuntimeError, match=r"backward: `zoo.embed.weight` must get one gradient per step"):
        backward(model, 0, 1)


def test_retained_graphs_add_up() -> None:
    (model, optimizer), (plain, reference) = pair()
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            loss = loss_of(one, step)
            loss.backward(retain_graph=True)
            loss.backward()
            its.step()
    assert int(optimizer.state[model.up.weight]["step"]) == 5
    assert same(snapshot(model, optimizer), snapshot(plain, reference))  # a gradient doubled is exact


def test_gradients_that_are_asked_for_are_left_alone() -> None:
    (model, optimizer), (plain, reference) = pair()
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            backward(one, step, 1)
            wanted = [*one.up.parameters(), one.embed.weight, one.gain, *one.conv.parameters()]
            found = torch.autograd.grad(loss_of(one, step + 50), wanted)
            assert all(grad is not None and grad.layout == torch.strided for grad in found)
            if one is model:
                assert taken(model)
                assert sum(param.grad is not None for param in model.parameters()) == 1  # the flag is back
            its.step()
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


def test_gradients_with_a_graph_of_their_own() -> None:
    (model, optimizer), (plain, reference) = pair()
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            wanted = list(one.up.parameters())
            squares = torch.autograd.grad(loss_of(one, step), wanted, create_graph=True)
            (loss_of(one, step) + 0.01 * sum(grad.square().sum() for grad in squares)).backward()
            its.step()
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_backward_with_create_graph() -> None:
    (model, optimizer), (plain, reference) = pair()
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            loss_of(one, step).backward(create_graph=True)
            its.step()
    for param in plain.parameters():
        param.grad = None
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


def test_backward_for_some_inputs_alone() -> None:
    (model, optimizer), (plain, reference) = pair()
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            torch.autograd.backward(loss_of(one, step), inputs=[one.up.weight, one.conv.bias])
            its.step()
    assert len(optimizer.state) == 2
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


def test_hooks_of_the_user() -> None:
    (model, optimizer), (plain, reference) = pair()
    seen: list[int] = []
    for one in (model, plain):
        one.up.weight.register_hook(lambda grad: 3 * grad)
        one.down.weight.register_hook(lambda grad: seen.append(1))
    assert train(model, optimizer, 5) == train(plain, reference, 5)
    assert len(seen) == 10
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


@every_accumulating
def test_autocast(case: Case) -> None:
    models = [Zoo(), Zoo()]
    optimizers = [case.make(model.parameters()) for model in models]
    fused_backward(models[0], optimizers[0])

    def cast(model: nn.Module, number: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(model, number)

    losses = [train(*both, 6, micro=cast) for both in zip(models, optimizers, strict=True)]
    assert losses[0] == losses[1]
    assert same(*(snapshot(*both) for both in zip(models, optimizers, strict=True)))


def test_a_gradient_given_by_hand_is_taken_at_the_step() -> None:
    (model, optimizer), (plain, reference) = pair(max_norm=1e9)
    for step in range(5):
        for one, its in ((model, optimizer), (plain, reference)):
            its.zero_grad()
            one.unused.grad = torch.ones_like(one.unused)
            backward(one, step, 1)
            one.square.weight.grad = None if one is model else 2 * one.square.weight.grad
            if one is model:
                loss_of(one, step).backward(inputs=[one.square.weight])
            its.step()
    assert same(snapshot(model, optimizer), snapshot(plain, reference))


def test_a_graph_made_before_a_step_inside_backward_is_stale() -> None:
    model = Zoo()
    fused_backward(model, FiraAdamW(model.parameters(), rank=4, nonfinite="raise"))
    loss = loss_of(model, 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|one gradient per step"):
        loss.backward()


def test_complex_parameters() -> None:
    weights = [nn.Parameter(torch.tensor([1 + 1j, 2 - 1j, 0.5j])) for _ in range(2)]
    optimizers = [GaLoreAdamW([weight], rank=None) for weight in weights]
    fused_backward(nn.ParameterList(weights[:1]), optimizers[0], max_norm=0.5)
    for _ in range(3):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            optimizer.zero_grad()
            (weight.abs() ** 2).sum().backward()
            if weight is weights[1]:
                nn.utils.clip_grad_norm_([weight], 0.5)
            optimizer.step()
    assert (weights[0] - weights[1]).abs().max() <= 3 * 8 * 2.0**-24
