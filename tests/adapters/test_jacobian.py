"""Rows of the Jacobian against torch.func: with and without a tape, any cotangents, chunks; memory and passes."""

from __future__ import annotations

import adapter_cases
import lowrank_core
import pytest
import torch
from lowrank_core import adapters
from testing import cases, checks, tolerance
from torch import Tensor, nn


def close(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype = torch.float64) -> bool:
    """Sums over tokens, layers and widths of at most 100 terms, in `dtype`."""
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= tolerance.gamma(100, dtype) * (1 + b.abs().max()))
        for a, b in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("chunk", [1, 2, 8, 100])
def test_rows_are_those_of_torch_func(chunk: int, batch: tuple[int, ...], batched: bool) -> None:
    model, x = adapter_cases.net(), adapter_cases.tokens(4, *batch)
    params = adapter_cases.trainable(model)
    with adapters.record_linears(model) as tape:
        outputs = model(x)
    found = adapters.jacobian_rows(outputs, params, tape=tape, chunk=chunk, batched=batched)
    assert close(found, adapter_cases.oracle(model, x))
    assert close(adapters.jacobian_rows(model(x), params, chunk=chunk, batched=batched), found)


def test_half_of_the_layers_on_the_tape() -> None:
    """Layers that were not recorded come from autograd; the bias of a frozen weight is a row of its own."""
    model, x = adapter_cases.net(), adapter_cases.tokens()
    params = adapter_cases.trainable(model)
    with adapters.record_linears(model, [model.first.lora_B.weight, model.head.base.bias]) as tape:
        outputs = model(x)
    assert len(tape.calls) == 3 and id(model.head.base.bias) in tape.weights()
    assert close(adapters.jacobian_rows(outputs, params, tape=tape), adapter_cases.oracle(model, x))


def test_cotangents_are_rows_of_a_product() -> None:
    model, x = adapter_cases.net(), adapter_cases.tokens()
    params, mix = adapter_cases.trainable(model), cases.gaussian(7, 5, seed=5)
    with adapters.record_linears(model) as tape:
        outputs = model(x)
    found = adapters.jacobian_rows(outputs, params, mix, tape=tape, chunk=3)
    exact = [torch.tensordot(mix, rows, 1) for rows in adapter_cases.oracle(model, x)]
    assert close(found, exact)
    none = adapters.jacobian_rows(model(x), params, mix[:0])
    assert [rows.shape for rows in none] == [(0, *p.shape) for p in params]


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_cotangents_of_outputs_of_any_dimensions(batch: tuple[int, ...]) -> None:
    weight, x = cases.gaussian(1, 4, seed=1)[0].requires_grad_(), cases.gaussian(6, 4, seed=2)[: 6 if batch else 1]
    x, mix = x.view(*batch, 4), cases.gaussian(5, 6, seed=3)[:, : 6 if batch else 1].reshape(5, *batch)
    (rows,) = adapters.jacobian_rows(x @ weight, [weight], mix)
    assert close([rows], [torch.tensordot(mix, x, len(batch)) if batch else mix.outer(x)])
    with pytest.raises(ValueError, match=r"jacobian_rows: `cotangents` must be .*'k'.* got shape"):
        adapters.jacobian_rows(x @ weight, [weight], mix[0])


def test_float32_and_the_dtype_of_rows() -> None:
    model, x = adapter_cases.net(torch.float32), adapter_cases.tokens(dtype=torch.float32)
    with adapters.record_linears(model) as tape:
        outputs = model(x)
    found = adapters.jacobian_rows(outputs, adapter_cases.trainable(model), tape=tape)
    assert all(rows.dtype == torch.float32 for rows in found)
    assert close(found, adapter_cases.oracle(model, x), torch.float32)


def test_a_weight_that_two_layers_share_is_summed() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False)).double()
    model[2].weight = model[0].weight
    x = adapter_cases.tokens()
    with adapters.record_linears(model) as tape:
        outputs = model(x)
    assert close(
        adapters.jacobian_rows(outputs, [model[0].weight], tape=tape, retain_graph=True),
        adapters.jacobian_rows(outputs, [model[0].weight]),
    )


def test_the_start_of_an_adapter() -> None:
    """B = 0: A has no rows yet, hence keeps its values and variances in the first step; B moves."""
    model = adapter_cases.LoRA(6, 5, 2).double()
    model.lora_B.weight.data.zero_()
    params = [model.lora_A.weight, model.lora_B.weight]
    with adapters.record_linears(model, params) as tape:
        logits = model(adapter_cases.tokens(1)[0])
    cotangents = adapters.softmax_cotangents(logits, torch.tensor(3))
    jac, score = adapters.split_score(adapters.jacobian_rows(logits, params, cotangents, tape=tape))
    variances, before = [torch.full_like(p, 0.1) for p in params], [p.detach().clone() for p in params]
    assert lowrank_core.kalman_diag_step_([p.data for p in params], variances, jac, score)
    assert torch.equal(params[0], before[0]) and bool((variances[0] == 0.1).all())
    assert not torch.equal(params[1], before[1]) and bool((variances[1] < 0.1).all())


def test_an_unused_parameter_has_rows_of_zeros() -> None:
    model, spare = adapter_cases.net(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    rows = adapters.jacobian_rows(model(adapter_cases.tokens()), [spare, model.gain])
    assert not rows[0].any() and rows[1].any()


def test_the_graph_is_freed_unless_it_shall_stay() -> None:
    model = adapter_cases.net()
    outputs = model(adapter_cases.tokens())
    first = adapters.jacobian_rows(outputs, [model.gain], retain_graph=True)
    assert checks.same_bits(first, adapters.jacobian_rows(outputs, [model.gain]))
    with pytest.raises(RuntimeError, match="second time"):
        adapters.jacobian_rows(outputs, [model.gain])


def test_gradients_and_hooks_are_left_alone() -> None:
    model = adapter_cases.net()
    with adapters.record_linears(model) as tape:
        outputs = model(adapter_cases.tokens())
    adapters.jacobian_rows(outputs, adapter_cases.trainable(model), tape=tape)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    held = len(tape.calls)
    model(adapter_cases.tokens())
    assert len(tape.calls) == held


def count_passes(model: nn.Module, x: Tensor, rows: int) -> int:
    """Backward passes that begin at the outputs."""
    passes = 0

    def count(_: Tensor) -> None:
        nonlocal passes
        passes += 1

    with adapters.record_linears(model) as tape:
        outputs = model(x)
    outputs.register_hook(count)
    adapters.jacobian_rows(outputs, adapter_cases.trainable(model), torch.ones(rows, 5), tape=tape)
    return passes


def test_one_pass_for_each_row() -> None:
    assert [count_passes(adapter_cases.net(), adapter_cases.tokens(), rows) for rows in (1, 4, 11)] == [1, 4, 11]


def test_memory_is_bounded_by_the_chunk() -> None:
    """Beside the result, no tensor has more elements than chunk * tokens * d_out, whatever the number of rows."""
    width, count, rows, chunk = 24, 50, 40, 4
    model = nn.Linear(width, width, bias=False).double()
    x = cases.gaussian(count, width)
    with adapters.record_linears(model) as tape:
        outputs = model(x).mean(0)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out._base is None:
                largest = max(largest, out.numel() if out.shape != (rows, width, width) else 0)
            return out

    with Sizes():
        adapters.jacobian_rows(outputs, [model.weight], torch.ones(rows, width), tape=tape, chunk=chunk)
    assert 0 < largest <= chunk * width * max(count, width)


def test_refusals() -> None:
    model = adapter_cases.net()
    outputs = model(adapter_cases.tokens())
    with pytest.raises(ValueError, match=r"jacobian_rows: `cotangents` must be \['k', 5\], got shape \[3, 4\]"):
        adapters.jacobian_rows(outputs, [model.gain], torch.ones(3, 4))
    with pytest.raises(ValueError, match="jacobian_rows: `chunk` must be >= 1, got 0"):
        adapters.jacobian_rows(outputs, [model.gain], chunk=0)
