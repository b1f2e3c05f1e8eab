"""AdaLoRA: the budget, the scores, the choice, and a run that goes on."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from testing.tolerance import assert_equal
from torch import Tensor, nn


def small(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 4)).to(dtype)


def backward(model: nn.Module, step: int) -> Tensor:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=g).to(next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> list[float]:
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        losses.append(float(backward(model, step)))
        optimizer.step()
    return losses


def made(model: nn.Module, **keys: Any) -> adapters.AdaLoRA:
    given = {"target_rank": 2, "init_rank": 4, "total_steps": 40, "t_init": 5, "t_final": 10, "lr": 0.02, **keys}
    return adapters.AdaLoRA(model, **given)


def test_the_budget_falls_by_a_cube_from_all_to_the_target() -> None:
    optimizer = made(small())
    budgets = [optimizer.budget(step) for step in range(41)]
    assert budgets[:6] == [12] * 6 and budgets[30:] == [6] * 11
    assert all(now >= later for now, later in itertools.pairwise(budgets))
    assert budgets[15] == 6 + int(6 * (1 - 10 / 25) ** 3)


@pytest.mark.parametrize("gap", [1, 3])
def test_as_many_values_are_left_as_the_budget_says(gap: int) -> None:
    model = small()
    optimizer = made(model, gap=gap)
    for step in range(1, 41):
        train(model, optimizer, 1, step)
        if step > 5 and (step % gap == 0 or step >= 30):
            assert sum(optimizer.ranks().values()) == optimizer.budget(step)
    assert optimizer.ranks() == {name: layer.rank for name, layer in model.named_modules() if hasattr(layer, "lora_E")}


def test_a_budget_of_all_triples_is_no_choice() -> None:
    model = small()
    optimizer = made(model, target_rank=4)
    train(model, optimizer, 10)
    assert sum(optimizer.ranks().values()) == optimizer.start == 12


def test_the_order_of_triples_does_not_matter() -> None:
    """Permuted triples have permuted scores, and the same ones are chosen: the same product, to rounding."""
    order, found = torch.tensor([1, 2, 0, 3]), []
    for permuted in (False, True):
        model = small(dtype=torch.float64)
        optimizer = made(model, t_init=1)
        with torch.no_grad():
            for i in (0, 2, 4):
                layer: Any = model[i]
                drawn = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
                layer.lora_E.copy_(drawn)  # at 0 all scores are equal, and the first triples are kept
                if permuted:
                    for factor in (layer.lora_E, layer.lora_A):
                        factor.copy_(factor[order])
                    layer.lora_B.copy_(layer.lora_B[:, order])
        train(model, optimizer, 20)
        layers: list[Any] = [model[i] for i in (0, 2, 4)]
        products = [torch.matmul(*layer.factors()) for layer in layers]
        found.append((products, optimizer.scores(), [layer.lora_E.flatten() != 0 for layer in layers]))
    (products, scores, kept), (others, moved, left) = found
    assert 0 < sum(map(int, (mask.sum() for mask in kept))) < 12
    for i in range(3):
        assert_equal(products[i], others[i])
        assert_equal(
            scores[i][order] / scores[i].max(), moved[i] / scores[i].max()
        )  # they are products of small numbers
        assert torch.equal(kept[i][order], left[i])


def test_scores_are_products_of_running_means() -> None:
    model = small(dtype=torch.float64)
    optimizer = made(model, target_rank=4, smoothing=(0.7, 0.6), orth=0.0)
    layer: Any = model[2]
    factors = {"e": layer.lora_E, "q": layer.lora_A, "p": layer.lora_B}
    importance, uncertainty = ({key: torch.zeros_like(p) for key, p in factors.items()} for _ in range(2))
    for step in range(6):
        train(model, optimizer, 1, step)
        for key, p in factors.items():
            found = (p * p.grad).abs().detach()
            importance[key] = 0.7 * importance[key] + 0.3 * found
            uncertainty[key] = 0.6 * uncertainty[key] + 0.4 * (found - importance[key]).abs()
    both = {key: importance[key] * uncertainty[key] for key in factors}
    expected = both["e"][:, 0] + both["q"].mean(1) + both["p"].mean(0)
    torch.testing.assert_close(optimizer.scores()[1], expected)


def test_the_penalty_is_the_mean_deviation_from_orthonormal_factors() -> None:
    model, plain = small(dtype=torch.float64), small(dtype=torch.float64)
    found = []
    for net, orth in ((model, 0.3), (plain, 0.0)):
        optimizer = made(net, orth=orth, t_init=20)
        backward(net, 0)
        if orth == 0.0:  # the penalty by autograd, in the gradients
            parts = [layer for layer in net.modules() if isinstance(layer, adapters.AdaLoRALinear)]
            eye = torch.eye(4, dtype=torch.float64)
            norms = [(q @ q.mT - eye).norm() for one in parts for q in (one.lora_A, one.lora_B.mT)]
            (0.3 * torch.stack(norms).mean()).backward()
        optimizer.step()
        found.append([p.detach() for p in net.parameters() if p.requires_grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_values_that_are_0_are_as_if_they_were_not_there() -> None:
    model = small(dtype=torch.float64)
    optimizer = made(model)
    train(model, optimizer, 40)
    assert 0 < sum(optimizer.ranks().values()) == 6
    x = torch.randn(3, 12, dtype=torch.float64)
    expected = model(x).detach()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, adapters.AdaLoRALinear):
            b, a = layer.factors()
            assert b.shape[1] == len(a) == layer.rank
            setattr(model, name, layer.merge())
    torch.testing.assert_close(model(x), expected)


def test_a_run_goes_on_to_the_bit() -> None:
    model = small()
    optimizer = made(model)
    train(model, optimizer, 20)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = small(seed=4)
    again = made(other)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert train(model, optimizer, 20, 20) == train(other, again, 20, 20)
    assert optimizer.ranks() == again.ranks()


def test_it_learns_and_leaves_the_base_alone() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = made(model, modules_to_save=["0.bias"], lr=0.05, total_steps=150)
    losses = train(model, optimizer, 150)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    for name, value in model.state_dict().items():
        own = name.replace("base_layer.", "")
        if own in before:
            assert torch.equal(value, before[own]) != (own == "0.bias"), name


def test_a_step_that_is_skipped_moves_no_schedule() -> None:
    model = small()
    optimizer = made(model)
    train(model, optimizer, 8)
    before = copy.deepcopy(optimizer.state_dict())
    backward(model, 9)
    model[0].lora_A.grad[0, 0] = torch.nan
    optimizer.step()
    after = optimizer.state_dict()
    assert optimizer.skipped_steps == 1 and after["schedule"] == before["schedule"]
    for number, state in after["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(before["state"][number][k])) for k, v in state.items()
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_rank": 0}, "`target_rank` must be an int >= 1, got 0"),
        ({"init_rank": 0}, "`init_rank` must be an int >= 1, got 0"),
        ({"t_init": -1}, "`t_init` must be an int >= 0, got -1"),
        ({"gap": 0}, "`gap` must be an int >= 1, got 0"),
        ({"total_steps": 15}, "`total_steps` must be an int > t_init \\+ t_final = 15, got 15"),
        ({"orth": -1.0}, "`orth` must be a number >= 0, or None, got -1.0"),
        ({"smoothing": (0.5, 1.0)}, "must be two numbers in"),
        ({"lr": -1.0}, "`lr` must be a number >= 0"),
        ({"target_modules": ["query"]}, "`target_modules` must match a matrix"),
    ],
)
def test_values_out_of_range_are_refused_and_the_model_stays(keys: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=message):
        made(model, **keys)
    assert all(type(module) is not adapters.AdaLoRALinear for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_state_of_another_schedule_is_refused() -> None:
    state = made(small()).state_dict()
    with pytest.raises(ValueError, match="must be of a run with `gap` = 2, got 1"):
        made(small(), gap=2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"must be what AdaLoRA\.state_dict"):
        made(small()).load_state_dict(torch.optim.AdamW(small().parameters()).state_dict())
