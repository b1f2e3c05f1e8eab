"""Rows by a tape are autograd's, however the model uses its weights; or they are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowrank_core import adapters
from testing import cases, checks, tolerance
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

F = nn.functional
D = 6


def drawn(model: nn.Module) -> nn.Module:
    model.double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * cases.gaussian(1, parameter.numel(), seed=i)[0].view_as(parameter)
    return model


def tokens(count: int = 4) -> Tensor:
    return cases.gaussian(count, D, seed=77)


def stack() -> nn.Sequential:
    return drawn(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))  # type: ignore[return-value]


def close(found: list[Tensor], exact: list[Tensor]) -> bool:
    """Sums over at most 100 terms."""
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= tolerance.gamma(100, b.dtype) * (1 + b.abs().max()))
        for a, b in zip(found, exact, strict=True)
    )


def agrees(model: nn.Module, forward: Callable[[], Tensor], calls: int, batched: bool = False) -> bool:
    """Whether rows by the tape are those of autograd; `calls`: how many the tape has to hold."""
    params = list(model.parameters())
    with adapters.record_linears(model) as tape:
        outputs = forward()
    assert len(tape.calls) == calls
    found = adapters.jacobian_rows(outputs, params, tape=tape, chunk=3, batched=batched)
    exact = adapters.jacobian_rows(forward(), params)
    assert all(bool(rows.any()) for rows in exact)
    return close(found, exact)


# ---- weights with other uses ---------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(7, D), nn.Linear(D, D), nn.Linear(D, 7)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(words)))).mean(0)


@pytest.mark.parametrize("batched", [False, True])
def test_tied_embeddings(batched: bool) -> None:
    model, words = drawn(Tied()), torch.tensor([1, 5, 2])
    assert agrees(model, lambda: model(words), 2, batched)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("use", ["linear", "matmul", "penalty", "bias", "input"])
def test_weights_that_are_used_again(use: str, batched: bool) -> None:
    """By torch.nn.functional.linear, which the tape holds too, and in ways that autograd alone sees."""
    model, x = stack(), tokens()
    first, last = model[0], model[2]
    uses: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda y: F.linear(torch.sin(y), weight=first.weight, bias=last.bias).mean(0),
        "matmul": lambda y: (torch.sin(y) @ first.weight.mT).mean(0),
        "penalty": lambda y: torch.cat([y.mean(0), first.weight.square().sum()[None], last.bias.norm()[None]]),
        "bias": lambda y: (y * first.bias).mean(0),
        "input": lambda y: last(first.weight).mean(0) + y.mean(0),
    }
    assert agrees(model, lambda: uses[use](model(x)), {"linear": 3, "input": 3}.get(use, 2), batched)


def test_a_penalty_through_the_input_of_a_recorded_call() -> None:
    """A path that leads through one recorded call into another use of the same weight."""
    model, x = stack(), tokens()
    scaled = lambda: model(x * model[2].weight.square().mean()).mean(0)  # noqa: E731
    assert agrees(model, scaled, 2)


def test_computed_weights_are_left_to_autograd() -> None:
    model, x = stack(), tokens()
    parametrizations.weight_norm(model[0])
    assert agrees(model, lambda: model(x).mean(0), 2)
    model[0].bias.requires_grad_(False)
    with adapters.record_linears(model) as tape:
        model(x)
    assert len(tape.calls) == 1


def test_outputs_of_a_pass_that_was_not_recorded() -> None:
    model, x = stack(), tokens()
    params = list(model.parameters())
    with adapters.record_linears(model) as tape:
        model(2 * x)
    found = adapters.jacobian_rows(model(x).mean(0), params, tape=tape)
    assert checks.same_bits(found, adapters.jacobian_rows(model(x).mean(0), params))


def test_a_parameter_asked_for_twice() -> None:
    model, x = stack(), tokens()
    params = [model[0].weight, model[0].bias, model[0].weight]
    with adapters.record_linears(model) as tape:
        outputs = model(x).mean(0)
    found = adapters.jacobian_rows(outputs, params, tape=tape)
    assert close(found, adapters.jacobian_rows(model(x).mean(0), params))


# ---- modules that do more than their layer -------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A layer with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(torch.sin(input))


@pytest.mark.parametrize("kind", ["before", "first", "global", "input", "keyword", "patched", "subclass", "in place"])
def test_hooks_and_forward_methods(kind: str) -> None:
    """What is recorded is the call of torch.nn.functional.linear, not what the module makes of it."""
    model, x = stack(), tokens()
    layer, forward, handles = model[0], model.forward, []
    if kind in ("before", "first"):
        handles.append(layer.register_forward_hook(lambda *_: 3.0 * _[2], prepend=kind == "first"))
    elif kind == "global":
        hook = lambda module, _, y: 3.0 * y if module is layer else None  # noqa: E731
        handles.append(nn.modules.module.register_module_forward_hook(hook))
    elif kind == "input":
        handles.append(layer.register_forward_pre_hook(lambda _, args: (torch.sin(args[0]),)))
    elif kind == "keyword":
        forward = lambda x: model[2](input=torch.tanh(layer(input=x)))  # noqa: E731
    elif kind == "patched":
        plain = layer.forward
        layer.forward = lambda x: 3.0 * plain(x)
    elif kind == "subclass":
        model[0] = Doubled(D, D)
        drawn(model)
    else:
        model[1] = nn.ReLU(inplace=True)
    try:
        assert agrees(model, lambda: forward(x).mean(0), 2)
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_of_parameters_are_kept() -> None:
    """Where a parameter has a hook, its rows are autograd's, with the hook's effect."""
    model, x = stack(), tokens()
    model[0].weight.register_hook(lambda g: 5.0 * g)
    assert agrees(model, lambda: model(x).mean(0), 2)


# ---- what changes after the pass -----------------------------------------------------------------------------------


def test_an_input_that_changed_is_refused() -> None:
    model, buffer = stack(), tokens()
    exact = adapters.jacobian_rows(model(buffer.clone()).mean(0), [model[0].bias, model[2].weight])
    with adapters.record_linears(model) as tape:
        outputs = model(buffer).mean(0)
    buffer.zero_()
    with pytest.raises(ValueError, match="`tape` must hold inputs as the forward pass read them, got one of shape"):
        adapters.jacobian_rows(outputs, [model[0].weight], tape=tape, retain_graph=True)
    found = adapters.jacobian_rows(outputs, [model[0].bias, model[2].weight], tape=tape)  # which do not read it
    assert close(found, exact)


def test_activations_that_changed_are_refused() -> None:
    model, x = stack(), tokens()
    with adapters.record_linears(model) as tape:
        hidden = model[0](x) * 1.0
        outputs = model[2](hidden).mean(0)
        hidden.add_(1.0)
    with pytest.raises(ValueError, match="`tape` must hold inputs as the forward pass read them"):
        adapters.jacobian_rows(outputs, list(model.parameters()), tape=tape)


def test_weights_that_changed() -> None:
    """The rows of a layer do not read its own weight; those before it do, and autograd says that it changed."""
    model, x = stack(), tokens()
    exact = adapters.jacobian_rows(model(x).mean(0), [model[2].weight, model[2].bias])
    with adapters.record_linears(model) as tape:
        outputs = model(x).mean(0)
    with torch.no_grad():
        model[2].weight.add_(1.0)
    found = adapters.jacobian_rows(outputs, [model[2].weight, model[2].bias], tape=tape, retain_graph=True)
    assert close(found, exact)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        adapters.jacobian_rows(outputs, [model[0].weight], tape=tape)


# ---- graphs that hide something ------------------------------------------------------------------------------------


@pytest.mark.parametrize("taped", [False, True])
def test_checkpoints(taped: bool) -> None:
    model, x = stack(), tokens().requires_grad_()
    params = list(model.parameters())
    exact = adapters.jacobian_rows(model(x).mean(0), params)

    def rows(reentrant: bool) -> list[Tensor]:
        with adapters.record_linears(model) as tape:
            hidden = checkpoint(model[:2], x, use_reentrant=reentrant)
            outputs = model[2](hidden).mean(0)
        return adapters.jacobian_rows(outputs, params, tape=tape if taped else None)

    assert close(rows(False), exact)
    with pytest.raises(ValueError, match="`outputs` must not come through reentrant checkpointing"):
        rows(True)


def test_graphs_that_reach_nothing() -> None:
    model, x = stack(), tokens()
    other, params = stack(), list(model.parameters())
    with pytest.raises(ValueError, match="`outputs` must depend on one of `params`, got a graph that reaches none"):
        adapters.jacobian_rows(other(x), params)
    with adapters.record_linears(model) as tape:  # of another pass
        model(x)
    with pytest.raises(ValueError, match="`outputs` must depend on one of `params`, got a graph that reaches none"):
        adapters.jacobian_rows(other(x), params, tape=tape)
    with torch.no_grad(), pytest.raises(ValueError, match="`outputs` must have a graph"):
        adapters.jacobian_rows(model(x), params)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"`params\[0\]` must require a gradient, got one that does not; leave it out"):
        adapters.jacobian_rows(model(x), params)


# ---- dtypes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [False, True])
def test_under_autocast_the_tape_multiplies_in_float32(around: bool) -> None:
    """Deltas of one are exact in bfloat16: the rows are the inputs, not the inputs in bfloat16."""
    layer, x = nn.Linear(D, 3), tokens(1)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with adapters.record_linears(layer) as tape:
            outputs = layer(x)
        assert outputs.dtype == torch.bfloat16
        if around:
            rows, bias = adapters.jacobian_rows(outputs, list(layer.parameters()), tape=tape)
    if not around:
        rows, bias = adapters.jacobian_rows(outputs, list(layer.parameters()), tape=tape)
    assert rows.dtype == bias.dtype == torch.float32 and torch.equal(bias, torch.eye(3))
    assert torch.equal(rows, torch.einsum("kj,i->kji", torch.eye(3), x))
