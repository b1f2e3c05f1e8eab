"""The family as torch operators: opcheck, fake kernels, torch.compile."""

from __future__ import annotations

import functools
from typing import Any

import chain_cases
import lowrank_core
import pytest
import torch
from chain_cases import attention, normal
from lowrank_core.ops.declare import DECLARED
from testing import cases, checks, compiler
from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def ops() -> Any:
    lowrank_core.chain_matmul([torch.zeros(1, 1)])  # the operators exist once a tensor has come
    return torch.ops.lowrank_core


def _grad(a: Tensor) -> Tensor:
    return a.requires_grad_()


def _attention(**options: Any) -> Arguments:
    t = attention(9, lead=(2,), size=0.01)
    arrays = tuple(t[n] for n in (*chain_cases.NAMES, "weight"))
    mask = torch.arange(9) < 7
    given = options.pop("features", False)
    pair = (normal(2, 9, 3, seed=1).exp(), normal(2, 9, 3, seed=2).exp()) if given else (None, None)
    return (*arrays, *pair, mask), {"scale": 0.5, "method": "exact", "degree": 2, "causal": False} | options


DY, X, W = normal(4, 5, seed=1), normal(4, 6, seed=2), normal(5, 6, seed=3)
A, B, U, S, V = (
    normal(2, 6, seed=4),
    normal(5, 2, seed=5),
    normal(5, 2, seed=6),
    normal(2, 2, seed=7),
    normal(6, 2, seed=8),
)

SAMPLES: dict[str, list[Arguments]] = {
    "chain_matmul": [
        (([_grad(cases.gaussian(3, 4)), _grad(cases.gaussian(4, 2, 2)), _grad(cases.gaussian(2, 5))],), {}),
        (([cases.gaussian(3, 4).mT.bfloat16()],), {}),
    ],
    "lora_linear": [
        ((_grad(X.clone()), W, _grad(A.clone()), _grad(B.clone()), _grad(normal(5, seed=9))), {"scale": 0.5}),
        ((X.bfloat16(), W.bfloat16(), A.bfloat16(), B.bfloat16()), {"scale": 2.0}),
        ((_grad(X.clone()), None, _grad(A.clone()), _grad(B.clone()), _grad(normal(5, seed=9))), {"scale": 0.5}),
    ],
    "usv_linear": [
        ((_grad(X.clone()), W, _grad(U.clone()), _grad(S.clone()), _grad(V.clone())), {"scale": 0.5}),
        ((X, _grad(W.clone()), U, S, V, _grad(normal(5, seed=9))), {"scale": 0.5}),
        ((_grad(X.clone()), None, _grad(U.clone()), _grad(S.clone()), _grad(V.clone())), {"scale": 0.5}),
    ],
    "lora_linear_backward": [
        ((_grad(DY.clone()), _grad(X.clone()), W, _grad(A.clone()), B), {"scale": 0.5, "input_grad": True}),
        ((DY, X, W, A, B), {"scale": 0.5, "input_grad": False}),
        ((_grad(DY.clone()), _grad(X.clone()), None, _grad(A.clone()), B), {"scale": 0.5, "input_grad": True}),
    ],
    "usv_linear_backward": [
        ((_grad(DY.clone()), _grad(X.clone()), W, U, _grad(S.clone()), V), {"scale": 0.5, "input_grad": True}),
        ((_grad(DY.clone()), _grad(X.clone()), None, U, _grad(S.clone()), V), {"scale": 0.5, "input_grad": True}),
    ],
    "attention_lora_grad": [
        _attention(),
        _attention(method="chained"),
        _attention(method="auto", features=True, causal=True),
    ],
    "attention_operands": [(_attention()[0][:7], {"scale": 0.5})],
    "positive_features": [((normal(2, 3, 4, seed=1), normal(5, 4, seed=2)), {"count": 6, "seed": 1})],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for arguments, options in SAMPLES[name]:
        torch.library.opcheck(getattr(ops(), name).default, arguments, options)


def test_every_operator_is_checked() -> None:
    assert {op.name for op in DECLARED["chain_lr"]} == {*SAMPLES}


def _layers(x: Tensor, a: Tensor, b: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    y = lowrank_core.lora_linear(x, W, a, b, scale=0.5) + lowrank_core.usv_linear(x, W, u, s, v, scale=0.5)
    y = y + lowrank_core.lora_linear(x, None, a, b, scale=2.0) + lowrank_core.usv_linear(x, None, u, s, v, scale=2.0)
    return lowrank_core.chain_matmul([y, W, A.mT])


@pytest.mark.parametrize("dynamic", (False, True))
def test_compiled_layers_give_the_same_bits(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_layers, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (4, 7) if dynamic else (4,):
        results = []
        for function in (_layers, compiled):
            leaves = [_grad(t.detach().clone()) for t in (normal(rows, 6, seed=2), A, B, U, S, V)]
            out = function(*leaves)
            out.square().sum().backward()
            results.append((out.detach(), *(t.grad for t in leaves)))
        assert checks.same_bits(*results)


@pytest.mark.parametrize("method", ("exact", "chained", "features"))
def test_compiled_attention_gives_the_same_bits(method: str) -> None:
    torch._dynamo.reset()
    t = attention(20, lead=(4,), kv_lead=(2,), size=0.002)
    options: dict[str, Any] = {"method": method, "key_mask": torch.arange(20) < 15}
    if method == "features":
        make = functools.partial(lowrank_core.positive_features, count=512)
        options |= {"method": "chained", "features": make}

    def call(queries: Tensor) -> Any:
        found = chain_cases.grad({**t, "queries": queries}, **options)
        return found.da, found.db, found.error_bound

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert checks.same_bits(call(t["queries"]), compiled(t["queries"]))


def test_compiled_refusals_are_the_same() -> None:
    compiler.needs_sentences()
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: lowrank_core.chain_matmul([a, a]), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"chain_matmul: `matrices\[1\]` must have 3 rows"):
        compiled(torch.ones(4, 3))


def test_parameters_are_read_and_results_have_their_names() -> None:
    t = attention(9, size=0.01)
    t["a"] = torch.nn.Parameter(t["a"])
    with torch.no_grad():
        found = chain_cases.grad(t)
    assert found._fields == ("da", "db", "error_bound") and found.error_bound.dtype == torch.float64
    layer = lowrank_core.lora_linear(X, torch.nn.Parameter(W), A, B, scale=1.0)
    assert layer.requires_grad


def test_what_positive_features_refuse() -> None:
    q, k = chain_cases.normal(4, 5, seed=1), chain_cases.normal(3, 5, seed=2)
    for keys, rule in (
        ({"count": 0}, "`count` must be >= 1, got 0"),
        ({"count": True}, "`count` must be an integer, got True"),
        ({"seed": -1}, "`seed` must be between 0 and"),
    ):
        for x, y in ((q, k), (q.numpy(), k.numpy())):
            with pytest.raises((ValueError, TypeError), match=f"positive_features: {rule}"):
                lowrank_core.positive_features(x, y, **keys)
