"""The family as torch operators: opcheck, fake kernels, torch.compile; the named result; refusals by their sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import int4_cases
import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core.ops.declare import DECLARED
from testing import cases, checks, compiler
from torch import Tensor


def ops() -> Any:
    lowrank_core.quantize_int4(torch.zeros(1))  # the operators exist once a tensor has come
    return torch.ops.lowrank_core


def positional(q: lowrank_core.Int4Matrix) -> tuple[Any, ...]:
    return (*q[:3], list(q.shape), q.dim, q.group_size, q.scheme)


AFFINE, NF4 = int4_cases.basis(40, 5), int4_cases.basis(40, 5, "nf4", dim=1, group_size=32)
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "quantize_int4": [
        ((cases.gaussian(7, 40),), {}),
        ((cases.gaussian(7, 5, 2).mT.bfloat16(),), {"dim": 1, "scheme": "nf4", "rounding": "stochastic", "seed": 3}),
        ((cases.gaussian(7, 40).float(),), {"dim": 0, "group_size": 32, "scheme": "affine_zp"}),
    ],
    "dequantize_int4": [
        ((*AFFINE[:3], [40, 5]), int4_cases.settings(AFFINE)),
        ((*NF4[:3], [40, 5]), {**int4_cases.settings(NF4), "dtype": torch.bfloat16}),
    ],
    "int4_project": [
        ((*positional(AFFINE), cases.gaussian(40, 3, 2).requires_grad_()), {}),
        ((*positional(NF4), cases.gaussian(40, 3).bfloat16()), {}),
    ],
    "int4_project_back": [
        ((*positional(AFFINE), cases.gaussian(5, 3, 2).requires_grad_()), {}),
        ((*positional(NF4), cases.gaussian(5, 3).mT.contiguous().mT.float()), {}),
    ],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for arguments, options in SAMPLES[name]:
        torch.library.opcheck(getattr(ops(), name).default, arguments, options)


def test_every_operator_is_checked() -> None:
    assert {op.name for op in DECLARED["int4_project"]} == {*SAMPLES}


@pytest.mark.parametrize("name", SAMPLES)
def test_fake_kernels_allocate_what_the_real_ones_return(name: str) -> None:
    for arguments, options in SAMPLES[name]:
        meta = [a.detach().to("meta") if isinstance(a, Tensor) else a for a in arguments]
        outs = [getattr(ops(), name)(*given, **options) for given in (arguments, meta)]
        real, fake = (
            [(x.shape, x.dtype, x.stride()) for x in (out if isinstance(out, tuple) else (out,))] for out in outs
        )
        assert real == fake


def _model(x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Every function of the family in one graph."""
    results = []
    for scheme in int4_cases.SCHEMES:
        q = lowrank_core.quantize_int4(x, dim=0, scheme=scheme, group_size=32)
        low = lowrank_core.int4_project(q, g)
        results += [lowrank_core.dequantize_int4(q), low, lowrank_core.int4_project_back(q, low)]
    return tuple(results)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend: str, dynamic: bool) -> None:
    """The same bits as eager, forward and backward; a second shape with dynamic shapes."""
    torch._dynamo.reset()
    compiled = torch.compile(_model, fullgraph=True, backend=backend, dynamic=dynamic)
    for m, n in ((50, 15), (70, 17)) if dynamic else ((50, 15),):
        results = []
        for function in (_model, compiled):
            g = cases.gaussian(m, n).requires_grad_()
            out = function(cases.gaussian(m, 6), g)
            sum(x.square().sum() for x in out if x.requires_grad).backward()
            results.append((*(x.detach() for x in out), g.grad))
        assert checks.same_bits(*results)


def test_compiled_refusals_are_the_same() -> None:
    compiler.needs_sentences()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: lowrank_core.quantize_int4(x, dim=2), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"quantize_int4: `dim` must be between -2 and 1, got 2 for shape \[4, 3\]"):
        compiled(torch.ones(4, 3))


def test_the_result_has_its_names() -> None:
    for x in (torch.ones(4, 300), np.ones((4, 300))):
        q = int4_cases.quantize(x)
        assert q._fields == ("packed", "scales", "offsets", "shape", "dim", "group_size", "scheme")
        assert (q.shape, q.dim, q.group_size, q.scheme) == ((4, 300), 1, 128, "affine")
        assert q.packed.shape == (4, 192) and q.scales.shape == q.offsets.shape == (4, 3)
        kind = type(x)
        assert all(isinstance(part, kind) for part in (*int4_cases.arrays(q), lowrank_core.dequantize_int4(q)))
        assert int4_cases.quantize(x, scheme="nf4").offsets is None
    assert int4_cases.quantize(torch.ones(3)).scales.dtype == torch.bfloat16


def test_quantizing_is_not_differentiable() -> None:
    x = cases.gaussian(3, 40).requires_grad_()
    with pytest.raises(NotImplementedError, match="quantize_int4: has no derivative"):
        lowrank_core.dequantize_int4(lowrank_core.quantize_int4(x)).sum().backward()


# ---- refusals ------------------------------------------------------------------------------------------------------

X = torch.ones(4, 40)
Q = int4_cases.basis(40, 5)
REFUSALS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: lowrank_core.quantize_int4([1.0]), TypeError, "quantize_int4: `x` must be a numpy.ndarray, torch.Tensor"),
    (lambda: lowrank_core.quantize_int4(X.int()), TypeError, "`x` must be float32 or float64 or bfloat16 or float16"),
    (lambda: lowrank_core.quantize_int4(torch.tensor(1.0)), ValueError, "`x` must have at least 1 dimensions"),
    (
        lambda: lowrank_core.quantize_int4(X, group_size=16),
        ValueError,
        "`group_size` must be between 32 and 256, got 16",
    ),
    (lambda: lowrank_core.quantize_int4(X, group_size=48), ValueError, "`group_size` must be a multiple of 32, got 48"),
    (lambda: lowrank_core.quantize_int4(X, group_size=64.0), TypeError, "`group_size` must be an integer, got 64.0"),
    (lambda: lowrank_core.quantize_int4(X, dim=-3), ValueError, r"`dim` must be between -2 and 1, got -3 for shape"),
    (
        lambda: lowrank_core.quantize_int4(X, scheme="int4"),
        ValueError,
        "`scheme` must be 'affine', .* or 'nf4', got 'int4'",
    ),
    (lambda: lowrank_core.quantize_int4(X, rounding="up"), ValueError, "`rounding` must be 'nearest' or 'stochastic'"),
    (lambda: lowrank_core.quantize_int4(X, seed=-1), ValueError, "`seed` must be between 0 and .*, got -1"),
    (lambda: lowrank_core.quantize_int4(X * float("nan")), ValueError, "`x` must be finite, got NaN or infinity"),
    (
        lambda: lowrank_core.quantize_int4(X.double() * 1e300),
        ValueError,
        r"`x` must stay within 2\*\*127 .*e\+300",
    ),
    (
        lambda: lowrank_core.quantize_int4(X * 2e38),
        ValueError,
        r"`x` must stay within 2\*\*127 .* divide it by a constant",
    ),
    (lambda: lowrank_core.dequantize_int4(X), TypeError, "dequantize_int4: `q` must be an Int4Matrix, got Tensor"),
    (lambda: lowrank_core.dequantize_int4(Q, "int8"), TypeError, "`dtype` must be float32 or .*, got 'int8'"),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(shape=(400, 5))),
        ValueError,
        r"`q.packed` must have shape \[256, 5\]",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(offsets=None)),
        ValueError,
        "`q.offsets` must be given for scheme",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(scheme="nf4")),
        ValueError,
        "`q.offsets` must be None for scheme 'nf4'",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(scales=Q.scales.half())),
        TypeError,
        "`q.scales` must be bfloat16 or",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(packed=Q.packed.mT.contiguous().mT)),
        ValueError,
        "must be contiguous",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(packed=None)),
        TypeError,
        "`q.packed` must be an array, got NoneType",
    ),
    (
        lambda: lowrank_core.dequantize_int4(Q._replace(scales=Q.scales.float().numpy())),
        TypeError,
        "of the same library",
    ),
    (lambda: lowrank_core.dequantize_int4(Q._replace(dim=-1)), ValueError, "`q.dim` must be between 0 and 1, got -1"),
    (lambda: lowrank_core.int4_project(X, X), TypeError, "int4_project: `q` must be an Int4Matrix"),
    (lambda: lowrank_core.int4_project(Q, X), ValueError, r"`g` must be \[..., m, n\] for the basis \[40, 5\] of `q`"),
    (
        lambda: lowrank_core.int4_project_back(Q, X),
        ValueError,
        r"`r` must be \[..., r, n\] for the basis \[40, 5\] of `q`",
    ),
    (lambda: lowrank_core.int4_project(Q, X[0]), ValueError, "`g` must have at least 2 dimensions"),
    (lambda: lowrank_core.int4_project(Q, X.mT.numpy()), TypeError, "`g` must be of the same library"),
    (lambda: lowrank_core.int4_project(Q, X.mT.long()), TypeError, "`g` must be float32 or"),
    (
        lambda: lowrank_core.int4_project(int4_cases.quantize(X[0]), X),
        ValueError,
        r"`q` must be of a matrix \[m, r\], got",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[2][:60])
def test_refusals(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, kind, sentence = case
    with pytest.raises(kind, match=sentence):
        call()
