"""Which parameters are taken for stacks, how the plan shows them, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from lowrank_core.memory import estimate_state_bytes as estimate_shapes
from lowrank_core.optim import METHODS, DCTAdamW, GaLoreAdamW, estimate_state_bytes, param_groups
from optim_cases import draw, plain_on_purpose
from torch import nn


class FeedForwardExperts(nn.Module):
    """As a mixture of experts of transformers has them."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(draw(count, 24, 16))
        self.gate_up_proj_bias = nn.Parameter(draw(count, 24))
        self.down_proj = nn.Parameter(draw(count, 16, 12))


class Bank(nn.Module):
    """Bare parameters in a module of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(draw(3, 16, 12))
        self.query = nn.Parameter(draw(1, 16, 12))  # one matrix is no stack
        self.vectors = nn.Parameter(draw(3, 1, 12))
        self.kernels = nn.Parameter(draw(3, 4, 5, 6))
        self.waves = nn.Parameter(torch.complex(draw(3, 16, 12), draw(3, 16, 12)))


class CausalConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(12, 16, 3))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)
        self.experts = FeedForwardExperts()
        self.single = FeedForwardExperts(1)
        self.bank = Bank()
        self.listed = nn.ParameterList([nn.Parameter(draw(2, 16, 12))])
        self.conv = nn.Conv1d(16, 12, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 12, 3))
        self.causal = CausalConv()
        self.bilinear = nn.Bilinear(16, 12, 8)
        self.lm_head = nn.Linear(16, 32, bias=False)


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
AUTO = [*EXPERTS, "bank.matrices", "listed.0"]


def stacks(groups: list[dict]) -> list[str]:
    return [name for group in groups if group.get("stacked") for name, _ in group["params"]]


def test_what_is_taken_for_a_stack() -> None:
    groups = param_groups(Model(), rank=4, verbose=False)
    assert stacks(groups) == AUTO
    plain, found, projected = groups
    assert (plain["rank"], found["rank"], projected["rank"]) == (None, 4, 4)
    assert [name for name, _ in projected["params"]] == ["proj.weight"] and "stacked" not in projected
    assert "experts.gate_up_proj_bias" in [name for name, _ in plain["params"]]


def test_a_module_by_its_name_alone_may_be_a_layer() -> None:
    class ExpertConv(nn.Conv1d):
        pass

    assert stacks(param_groups(nn.Sequential(ExpertConv(16, 12, 3)), rank=2, verbose=False)) == ["0.weight"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("experts", EXPERTS),
        (["down_proj", "bank"], ["experts.down_proj", "single.down_proj", "bank.matrices", "bank.query"]),
        (["experts", "conv.weight"], [*EXPERTS, "conv.weight"]),
        (False, []),
        (
            True,
            [
                *EXPERTS, "single.gate_up_proj", "single.down_proj", "bank.matrices", "bank.query", "listed.0",
                "conv.weight", "normed.parametrizations.weight.original1", "causal.weight", "bilinear.weight",
            ],
        ),
    ],
)  # fmt: skip
def test_what_the_caller_says(value: Any, names: list[str]) -> None:
    assert stacks(param_groups(Model(), rank=2, stacked=value, verbose=False)) == names


def test_only_targets_that_are_not_excluded() -> None:
    model = Model()
    assert stacks(param_groups(model, ["down"], rank=4, verbose=False)) == ["experts.down_proj"]
    assert stacks(param_groups(model, ["proj"], ("experts", "bank"), rank=4, verbose=False)) == []
    assert stacks(param_groups(model, r"experts\..*", rank=4, verbose=False)) == EXPERTS
    for param in model.experts.parameters():
        param.requires_grad_(False)
    assert stacks(param_groups(model, ["all-linear"], rank=4, verbose=False)) == AUTO[2:]
    assert "conv.weight" in [n for n, _ in param_groups(model, ["conv"], rank=4, verbose=False)[-1]["params"]]


def test_a_rank_is_one_of_a_matrix() -> None:
    """4 matrices 24 x 16 have the ranks of 24 x 16, not of 4 x 384."""
    for rank, expected in ((10, 10), (0.25, 4), ("full", 16)):
        optimizer = METHODS["galore"](
            param_groups(Model(), ["gate_up"], rank=rank, verbose=False), force_projection=True
        )
        rows = {row.name: row for row in optimizer.plan()}
        assert rows["experts.gate_up_proj"].rank == expected
    groups = param_groups(Model(), ["gate_up"], rank=15, verbose=False)
    assert stacks(groups) == ["experts.gate_up_proj"]
    with pytest.raises(ValueError, match="the largest min\\(m, n\\) among them is 16"):
        param_groups(Model(), ["gate_up_proj"], ("bias", "single"), rank=16, verbose=False)


def test_the_plan_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    groups = param_groups(Model(), ["experts"], "bias", rank=4)
    shown = capsys.readouterr().out
    assert re.search(r"experts.gate_up_proj +1 +4x24x16 +projected +right +4 +a stack of 4 matrices\n", shown)
    assert re.search(r"experts.down_proj +1 +4x16x12 +projected +right +4 +a stack of 4 matrices\n", shown)
    rows = {row.name: row for row in GaLoreAdamW(groups).plan()}
    assert len(rows) == len(list(Model().parameters()))
    assert rows["experts.down_proj"][1:] == ((4, 16, 12), True, "right", 4, "a stack of 4 matrices")
    param_groups(Model(), ["experts"], "bias", rank=None)
    assert "a stack of 4 matrices, where the optimizer's `rank` is below 16" in capsys.readouterr().out
    param_groups(Model(), ["experts"], "bias", rank="full")
    assert "a stack of 4 matrices, whole, by an optimizer that" in capsys.readouterr().out


def test_tied_stacks_come_once() -> None:
    model = nn.ModuleList([FeedForwardExperts(), FeedForwardExperts()])
    model[1].down_proj = model[0].down_proj
    assert stacks(param_groups(model, rank=4, verbose=False)) == ["0.gate_up_proj", "0.down_proj", "1.gate_up_proj"]


@plain_on_purpose
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_them_on_the_default_groups(name: str) -> None:
    model: Any = Model()
    optimizer = METHODS[name](param_groups(model, rank=None, verbose=False))  # type: ignore[call-arg]
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = draw(*param.shape, seed=3).to(param.dtype)
    optimizer.step()
    for key in EXPERTS:
        moved = (dict(model.named_parameters())[key].detach() - before[key]).flatten(1)
        assert bool((moved != 0).any(dim=1).all()), key


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "`stacked` must be \"auto\", True, False, a word or several, got 3"),
        (None, "`stacked` must be \"auto\", True, False, a word or several, got None"),
        ((), "`stacked` must be \"auto\", True, False, a word or several, got \\(\\)"),
        ([""], "`stacked` must be a word or several, none of them empty"),
        ("nothing", r"`stacked` must match a parameter \[E, m, n\] by its name \(there are: bank.mat.*'nothing'"),
        ("proj.weight", "`stacked` must match a parameter .*got 'proj.weight'"),
        ("gate_up_proj_bias", "`stacked` must match a parameter .*got 'gate_up_proj_bias'"),
        ("kernels", "`stacked` must match a parameter .*got 'kernels'"),
        (["experts", "bank.vectors"], "`stacked` must match a parameter .*got 'bank.vectors'"),
    ],
)  # fmt: skip
def test_wrong_words(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^param_groups: {message}"):
        param_groups(Model(), rank=4, stacked=value, verbose=False)
    if value is not None:  # which means "auto" there
        with pytest.raises(ValueError, match=f"^estimate_state_bytes: {message}"):
            estimate_state_bytes(Model(), "galore", rank=4, stacked=value)


def test_no_model_with_stacks_has_none() -> None:
    with pytest.raises(ValueError, match=r"\(there are: none\), got 'x'"):
        param_groups(nn.Linear(4, 4), rank=2, stacked="x", verbose=False)
    assert stacks(param_groups(nn.Linear(4, 4), rank=2, stacked=True, verbose=False)) == []


def test_the_key_is_not_of_what_is_not_projected() -> None:
    with pytest.raises(ValueError, match="`others` must have no `stacked`: what is not projected has none"):
        param_groups(Model(), rank=4, others={"stacked": True}, verbose=False)


@pytest.mark.parametrize("shape", [(), (12,), (8, 12), (0, 8, 12), (2, 3, 8, 12)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_groups_of_stacks_take_nothing_else(name: str, shape: tuple[int, ...]) -> None:
    weights = [("w", nn.Parameter(draw(2, 8, 12))), ("x.y", nn.Parameter(torch.zeros(shape)))]
    with pytest.raises(
        ValueError,
        match=rf"^{METHODS[name].__name__}: `x.y` must be \[E, m, n\] with E >= 1, which `stacked` takes as E "
        rf"matrices, got {re.escape(repr(shape))}; leave it to a group without `stacked`$",
    ):
        METHODS[name]([{"params": weights, "rank": 2, "stacked": True}])


def test_an_edit_that_makes_a_matrix_a_stack_is_refused() -> None:
    weight = nn.Parameter(draw(8, 12))
    optimizer = GaLoreAdamW([("w", weight)], rank=2)
    weight.grad = draw(8, 12)
    optimizer.param_groups[0]["stacked"] = True
    with pytest.raises(ValueError, match=r"^step: `w` must be \[E, m, n\]"):
        optimizer.step()
    assert not optimizer.state


def test_a_basis_is_one_of_a_matrix() -> None:
    """3 x 12 x 16 are matrices of a length that Hadamard's has, 3 x 192 is none."""
    DCTAdamW([nn.Parameter(draw(3, 20, 16))], rank=4, basis="hadamard", stacked=True)
    with pytest.raises(ValueError, match="'hadamard' for a weight"):
        DCTAdamW([nn.Parameter(draw(3, 20, 12))], rank=4, basis="hadamard", stacked=True)


def test_bytes_of_shapes() -> None:
    shapes = {"experts.up": (4, 24, 16), "bank": (3, 8, 8), "w": (9, 7)}
    alone = {**{f"experts.up{i}": (24, 16) for i in range(4)}, **{f"bank{i}": (8, 8) for i in range(3)}, "w": (9, 7)}
    assert estimate_shapes(shapes, rank=2, stacked=True) == estimate_shapes(alone, rank=2)
    some = estimate_shapes({**shapes, "bank": (3, 8, 8)}, rank=2, stacked="experts")
    assert some == estimate_shapes({**{k: v for k, v in alone.items() if "bank" not in k}, "bank": (3, 8, 8)}, rank=2)
    assert estimate_shapes(shapes, rank=2, stacked=True, counts={"w": 2, "experts.up": 5}) == estimate_shapes(
        alone, rank=2, counts={"w": 2, **{f"experts.up{i}": 5 for i in range(4)}}
    )
    excluded = estimate_shapes(shapes, rank=2, stacked=True, exclude="bank")
    assert excluded == estimate_shapes({**alone, "bank": (3, 8, 8)}, rank=2, exclude="bank") - 3 * (2 * 64 * 4 + 4)
    for value, message in (
        (3, "be True, False, a word or several, got 3"),
        ("y", "be in the name of a shape, got 'y'"),
    ):
        with pytest.raises(ValueError, match=f"^estimate_state_bytes: `stacked` must {message}"):
            estimate_shapes(shapes, rank=2, stacked=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`w` must be \[E, m, n\] with E >= 1"):
        estimate_shapes(shapes, rank=2, stacked="w")
