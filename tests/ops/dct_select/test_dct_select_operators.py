"""The family as torch operators, its determinism, and NumPy against torch."""

from __future__ import annotations

from typing import Any

import dct_family as family
import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.declare import DECLARED
from testing import cases, checks, machine
from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
LEVELS = _core.isa_levels()
INDICES = torch.tensor([0, 2, 5])


def ops() -> Any:
    lowrank_core.dct(torch.zeros(1))  # the operators exist once a tensor has come
    return torch.ops.lowrank_core


SAMPLES: dict[str, list[Arguments]] = {
    "dct": [((cases.gaussian(7, 5).requires_grad_(), 0), {}), ((cases.gaussian(4, 8, 2).bfloat16(),), {})],
    "idct": [((cases.gaussian(7, 5).requires_grad_(), -1), {}), ((torch.ones(3), 0), {})],
    "dct_select": [
        ((cases.gaussian(7, 5), 3), {"norm_ord": 1}),
        ((cases.gaussian(8, 6, 2).float(), 2), {"basis": "hadamard", "side": "left"}),
        ((cases.gaussian(8, 6), 2, cases.orthonormal(6, 6)), {"basis": "custom"}),
    ],
    "dct_select_feedback_": [
        ((torch.zeros(7, 5), cases.gaussian(7, 5).float(), 2), {"keep": 0.5}),
        ((torch.zeros(2, 5, 7), cases.gaussian(5, 7, 2), 2), {"side": "left"}),
    ],
    "dct_project_back": [
        ((cases.gaussian(7, 3), INDICES, 6), {}),
        ((cases.gaussian(3, 7), INDICES, 9), {"side": "left"}),
    ],
    "rotate_moments": [((cases.gaussian(7, 3), cases.gaussian(7, 3).float(), INDICES, INDICES[:2], "right"), {})],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for arguments, options in SAMPLES[name]:
        torch.library.opcheck(getattr(ops(), name).default, arguments, options)


def test_every_operator_is_checked() -> None:
    assert {op.name for op in DECLARED["dct_select"]} == {*SAMPLES}


@pytest.mark.parametrize("name", ["dct_select", "dct_project_back", "rotate_moments"])
def test_no_derivative_is_said(name: str) -> None:
    arguments, options = SAMPLES[name][0]
    first = arguments[0].clone().requires_grad_()
    out = getattr(ops(), name)(first, *arguments[1:], **options)
    floats = [x for x in family.arrays(out) if x.requires_grad]
    with pytest.raises(NotImplementedError, match=f"{name}: has no derivative"):
        floats[0].sum().backward()


@pytest.mark.parametrize("which", ["residual", "g"])
def test_feedback_that_would_be_recorded_is_refused(which: str) -> None:
    arrays = {name: cases.gaussian(7, 5).requires_grad_(name == which) for name in ("residual", "g")}
    with pytest.raises(RuntimeError, match=f"dct_select_feedback_: `{which}` must not require a gradient"):
        lowrank_core.dct_select_feedback_(arrays["residual"], arrays["g"], 2)
    with torch.no_grad():
        assert lowrank_core.dct_select_feedback_(arrays["residual"], arrays["g"], 2).indices.shape == (2,)


@pytest.mark.parametrize("call", family.CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fake_kernels_allocate_what_the_real_ones_return(call: str, dtype: torch.dtype) -> None:
    a = cases.gaussian(66, 68, 2).to(dtype)
    real = family.arrays(family.CALLS[call](a))
    fake = family.arrays(family.CALLS[call](a.to("meta")))
    described = [[(x.shape, x.dtype, x.stride()) for x in out] for out in (real, fake)]
    assert described[0] == described[1]
    assert all(x.is_meta for x in fake) and all(x.is_contiguous() for x in real)


def _model(g: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    """Every operator in one graph."""
    spectrum = lowrank_core.idct(lowrank_core.dct(g, dim=0))
    first = lowrank_core.dct_select(spectrum.detach(), 4, side="right")
    second = lowrank_core.dct_select_feedback_(residual, spectrum.detach(), 3, side="right")
    m, v = lowrank_core.rotate_moments(first.coeffs, first.coeffs.square(), first.indices, second.indices, side="right")
    back = lowrank_core.dct_project_back(m, second.indices, g.shape[1], side=second.side)
    return spectrum, first.indices, first.captured, second.indices, m, v, back, residual


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_model, fullgraph=True, backend=backend, dynamic=dynamic)
    for m, n in ((20, 15), (24, 17)) if dynamic else ((20, 15),):
        results = []
        for function in (_model, compiled):
            g = cases.gaussian(m, n).requires_grad_()
            out = function(g, torch.zeros(m, n, dtype=torch.float64))
            out[0].square().sum().backward()
            results.append((*(x.detach() for x in out), g.grad))
        assert checks.same_bits(*results)


def test_vmap_equals_the_batch() -> None:
    a = cases.gaussian(9, 7, 4)
    assert checks.same_bits(torch.vmap(lowrank_core.dct)(a), lowrank_core.dct(a))
    mapped = torch.vmap(lambda x: tuple(lowrank_core.dct_select(x, 3)[:3]))(a)
    assert checks.same_bits(tuple(mapped), tuple(lowrank_core.dct_select(a, 3)[:3]))


def test_results_have_their_names_and_kinds() -> None:
    for a in (torch.ones(6, 3), torch.ones(6, 3).numpy()):
        out = lowrank_core.dct_select(a, 2)
        assert isinstance(out, lowrank_core.Selection) and out._fields == ("indices", "coeffs", "captured", "side")
        assert all(type(x) is type(a) for x in out[:3]) and 0 <= float(out.captured) <= 1


# ---- determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", family.CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_do_not_change_a_bit(call: str, dtype: torch.dtype, level: str) -> None:
    a = cases.gaussian(300, 211).to(dtype)
    results = []
    with machine.isa(level):
        for count in (1, 2, 3):
            with machine.threads(count):
                results.append(family.arrays(family.CALLS[call](a)))
    assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


def test_threads_do_not_change_a_large_selection() -> None:
    a = cases.gaussian(4200, 96).float()
    results = []
    for count in (1, 2, 3):
        with machine.threads(count):
            results.append(tuple(lowrank_core.dct_select(a, 30)[:3]))
    assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


@pytest.mark.parametrize("call", family.CALLS)
def test_a_batch_equals_its_members(call: str) -> None:
    a = cases.gaussian(66, 68, 2, 3).float()
    with machine.threads(2):
        together = family.arrays(family.CALLS[call](a))
        for i in range(2):
            for j in range(3):
                alone = family.arrays(family.CALLS[call](a[i, j]))
                assert checks.same_bits(tuple(x[i, j].contiguous() for x in together), alone)


@pytest.mark.parametrize("call", family.CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_equals_torch(call: str, dtype: torch.dtype) -> None:
    a = cases.gaussian(66, 68).to(dtype)
    from_torch, from_numpy = (family.arrays(family.CALLS[call](x)) for x in (a, a.numpy()))
    assert all(isinstance(x, torch.Tensor) for x in from_torch)
    assert all(isinstance(x, np.ndarray) for x in from_numpy)
    assert checks.same_bits(from_torch, from_numpy)
