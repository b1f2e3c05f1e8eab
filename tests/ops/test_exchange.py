"""Torch's table of C functions says the same of a tensor as the attributes that are read where it is missing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from lowrank_core import _core  # noqa: E402


class Plain(torch.Tensor):
    """A subclass: torch's table is for torch's own classes, so that this one is read by its attributes."""


def by_attributes(tensor):
    return tensor.as_subclass(Plain)


BASE = torch.arange(48, dtype=torch.float64).reshape(6, 8)
READABLE = {
    "dense": BASE,
    "transposed": BASE.T,
    "slice": BASE[1::2, 3:],
    "expanded": BASE[:, :1].expand(6, 8),
    "one row": BASE[2:3],
    "empty": BASE[:0],
    "with a gradient": BASE.clone().requires_grad_() * 2,
    "parameter": torch.nn.Parameter(BASE.clone()),
    "of inference": torch.inference_mode()(BASE.clone)(),
    **{str(dtype): BASE.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)},
}


@pytest.mark.parametrize("name", READABLE)
def test_same_values(name):
    tensor = READABLE[name].detach() if name == "with a gradient" else READABLE[name]
    ours, theirs = (torch.full(tensor.shape, torch.nan, dtype=torch.float64) for _ in range(2))
    identity = torch.eye(tensor.shape[0], dtype=tensor.dtype)
    exact = {"precision": "highest"}
    _core.gemm(ours, identity, tensor, **exact)
    _core.gemm(by_attributes(theirs), by_attributes(identity), by_attributes(tensor), **exact)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, READABLE[name].detach().double())


REFUSED = {
    "negated": torch._neg_view(torch.ones(3)),
    "imaginary part": torch.ones(3, dtype=torch.complex64).conj().imag,
    "no memory": torch._efficientzerotensor((3,)),
    "meta": torch.ones(3, device="meta"),
    "sparse": torch.eye(3).to_sparse(),
    "nine dimensions": torch.ones([1] * 9),
    **{str(t): torch.ones(3).to(t) for t in (torch.bool, torch.int16, torch.complex64, torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_same_refusals(name):
    tensor = REFUSED[name]
    sentence = _core.array_refusal(tensor)
    assert sentence is not None and sentence.startswith("must ")
    if name not in ("no memory", "sparse"):  # a subclass of them cannot be made
        assert sentence.replace("Tensor", "Plain") == _core.array_refusal(by_attributes(tensor)).replace(
            "Tensor", "Plain"
        )


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_values_under_a_transform_are_refused(transform):
    """torch's table has no memory to give for them; its error must not stay behind."""
    seen = []

    def look(x):
        seen.append(_core.array_refusal(x))
        return (x * x).sum()

    if transform == "vmap":
        torch.func.vmap(look)(torch.ones(2, 3))
    else:
        torch.func.grad(look)(torch.ones(3))
    assert seen[0].startswith("must be an ordinary dense tensor")


def test_writing_parts_a_shared_copy():
    """A tensor that shares its memory until one of the two is written."""
    values = torch.zeros(4, dtype=torch.int64)
    copy = torch._lazy_clone(values)
    _core.philox_bits(copy, seed=1, stream=0, step=0)
    assert values.eq(0).all() and copy.ne(0).any()


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no such table")
@pytest.mark.parametrize("kind", [torch.clone, torch.nn.Parameter, torch.nn.Buffer])
def test_table_is_used(kind, monkeypatch):
    """Its attributes are not asked for but the one that a table does not know."""
    tensor = kind(torch.ones(3))
    for name in ("data_ptr", "stride"):
        monkeypatch.setattr(
            type(tensor) if "data_ptr" in vars(type(tensor)) else torch.Tensor, name, None, raising=False
        )
    assert _core.array_refusal(tensor) is None
