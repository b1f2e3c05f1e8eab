"""Arrays that are not ordinary memory, to every argument of every operator: resolved, or refused by a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from every_operator import BY_NAME, CALLS, EVERY_ARRAY, Call, bits, copies, tensors
from testing import foreign

TENSOR_CALLS = [call.op for call in CALLS]
ANSWERS = ("kalman_diag_step_", "subspace_step_")  # whether the step was taken, which depends on the numbers


def refusal(call: Call, arrays: dict[str, Any]) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        call.run(arrays)
    return str(caught.value)


@pytest.mark.parametrize(("op", "name"), [case for case in EVERY_ARRAY if not BY_NAME[case[0]].torch_only])
def test_unaligned_memory_is_refused(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = copies(call)
    if arrays[name].itemsize == 1:
        return  # bytes are always aligned
    arrays[name] = foreign.unaligned(arrays[name])
    assert refusal(call, arrays).startswith(f"{op}: `{name}` must be aligned to its elements of ")


@pytest.mark.parametrize(("op", "name"), EVERY_ARRAY)
def test_unaligned_tensors_are_refused(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = tensors(call)
    if arrays[name].element_size() == 1:
        return
    arrays[name] = foreign.unaligned_tensor(arrays[name])
    assert refusal(call, arrays).startswith(f"{op}: `{name}` must be aligned to its elements of ")


@pytest.mark.parametrize(("op", "name"), [case for case in EVERY_ARRAY if not BY_NAME[case[0]].torch_only])
def test_another_byte_order_is_refused(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = copies(call)
    if arrays[name].itemsize == 1:
        return
    arrays[name] = arrays[name].astype(arrays[name].dtype.newbyteorder())
    assert refusal(call, arrays).startswith(f"{op}: `{name}` must be ")


@pytest.mark.parametrize(("op", "name"), EVERY_ARRAY)
def test_a_tensor_without_memory_is_refused(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = tensors(call)
    arrays[name] = foreign.Wrapper(arrays[name])
    text = refusal(call, arrays)
    assert text.startswith(f"{op}: `{name}` must hold memory of its own, got a Wrapper without any"), text


@pytest.mark.parametrize(("op", "name"), EVERY_ARRAY)
def test_a_sparse_tensor_is_refused(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = tensors(call)
    arrays[name] = arrays[name].to_sparse()
    text = refusal(call, arrays)
    assert text.startswith(f"{op}: `{name}` must be an ordinary dense tensor, got layout torch.sparse_coo"), text


@pytest.mark.parametrize(("op", "name"), EVERY_ARRAY)
def test_what_is_to_be_negated_counts_as_it_reads(op: str, name: str) -> None:
    """torch resolves what its operators read; what is changed, or read by a plain function, is refused."""
    call = BY_NAME[op]
    arrays = tensors(call)
    if not arrays[name].is_floating_point():
        return
    expected = bits(call, tensors(call))
    arrays[name] = foreign.negated(arrays[name])
    if name.startswith(("q.", "exp_avg")):  # such a view is not contiguous either
        assert refusal(call, arrays).startswith(f"{op}: `{name}` must be contiguous")
    elif call.lists or name in call.changed:
        text = refusal(call, arrays)
        assert text.startswith(f"{op}: `{name}` must hold its values, got a view that is to be negated"), text
    else:
        assert bits(call, arrays) == expected


@pytest.mark.parametrize("op", TENSOR_CALLS)
def test_subclasses_of_tensors_are_tensors(op: str) -> None:
    class Named(torch.Tensor):
        pass

    call = BY_NAME[op]
    arrays = {name: a.as_subclass(Named) for name, a in tensors(call).items()}
    assert bits(call, arrays) == bits(call, tensors(call))


@pytest.mark.parametrize("op", TENSOR_CALLS)
def test_the_default_device_of_torch_does_not_matter(op: str) -> None:
    call = BY_NAME[op]
    expected, arrays = bits(call, tensors(call)), tensors(call)
    torch.set_default_device("meta")
    try:
        got = bits(call, arrays)
    finally:
        torch.set_default_device(None)
    assert got == expected


@pytest.mark.parametrize("op", TENSOR_CALLS)
def test_meta_tensors_give_shapes_or_a_sentence(op: str) -> None:
    call = BY_NAME[op]
    arrays = {name: a.to("meta") for name, a in tensors(call).items()}
    if call.lists or op in ANSWERS:
        text = refusal(call, arrays)
        assert text.startswith(f"{op}: `") and "memory" in text
        return
    given, expected = call.run(arrays), call.run(tensors(call))
    for meta, real in zip(_flat(given), _flat(expected), strict=True):
        assert meta.device.type == "meta" and (meta.shape, meta.dtype) == (real.shape, real.dtype)


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for member in value for t in _flat(member)] if isinstance(value, (tuple, list)) else []


@pytest.mark.parametrize("op", TENSOR_CALLS)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_fake_tensors_give_shapes_or_a_sentence(op: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = BY_NAME[op]
    with FakeTensorMode() as mode:
        arrays = {name: mode.from_tensor(a) for name, a in tensors(call).items()}
        if call.lists or op in ANSWERS:
            text = refusal(call, arrays)
            assert text.startswith(f"{op}: `") and "memory of its own" in text
            return
        given = call.run(arrays)
    for fake, real in zip(_flat(given), _flat(call.run(tensors(call))), strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


# ---- in place ------------------------------------------------------------------------------------------------------

CHANGED = [(call.op, name) for call in CALLS for name in call.changed]


@pytest.mark.parametrize(("op", "name"), CHANGED)
def test_what_is_changed_may_not_be_read_only(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = copies(call)
    arrays[name].flags.writeable = False
    assert refusal(call, arrays) == f"{op}: `{name}` must be writable, got a read-only array; pass a writable copy"


@pytest.mark.parametrize(("op", "name"), CHANGED)
@pytest.mark.parametrize("convert", [lambda a: a, torch.from_numpy], ids=["numpy", "torch"])
def test_what_is_changed_may_not_overlap_itself(op: str, name: str, convert: Any) -> None:
    call = BY_NAME[op]
    arrays = copies(call)
    if arrays[name].size == 1:
        return
    strides = (0,) * (arrays[name].ndim - 1) + (4,) if arrays[name].ndim > 1 else (0,)
    arrays[name] = np.lib.stride_tricks.as_strided(arrays[name].copy(), arrays[name].shape, strides)
    text = refusal(call, {key: convert(a) for key, a in arrays.items()})
    assert text.startswith(f"{op}: `{name}` must not overlap itself in memory") or "must be contiguous" in text, text


SHARING = [
    (call.op, name, other)
    for call in CALLS
    for name in call.changed
    for other in call.arrays
    if other != name and call.arrays[other].shape == call.arrays[name].shape
]


@pytest.mark.parametrize(("op", "name", "other"), SHARING)
@pytest.mark.parametrize("convert", [lambda a: a, torch.from_numpy], ids=["numpy", "torch"])
def test_what_is_changed_shares_no_memory_with_the_rest(op: str, name: str, other: str, convert: Any) -> None:
    call = BY_NAME[op]
    arrays = copies(call)
    arrays[other] = arrays[name]
    before = {key: a.copy() for key, a in arrays.items()}
    text = refusal(call, {key: convert(a) for key, a in arrays.items()})
    assert text.startswith(f"{op}: `") and "must not share memory with" in text
    assert f"`{name}`" in text and f"`{other}`" in text
    assert all(np.array_equal(a, before[key]) for key, a in arrays.items())


def test_two_weights_of_one_step_share_no_memory() -> None:
    w, p = np.ones((4, 4), np.float32), np.eye(4, 2, dtype=np.float32)
    moments = [np.zeros((2, 4), np.float32) for _ in range(2)]
    options: dict[str, Any] = {"sides": ["left"] * 2, "steps": [1, 1], "lr": 0.1, "rule": "momentum"}
    with pytest.raises(ValueError, match=r"`params\[1\]` must not share memory with `params\[0\]`"):
        lc.subspace_step_([w, w], [w + 1, w + 1], [p, p], moments, **options)
    whole = np.ones((4, 8), np.float32)
    assert lc.subspace_step_([whole[:, :4], whole[:, 4:]], [w, w], [p, p], moments, **options)
    assert np.array_equal(whole[:, :4], whole[:, 4:]) and not np.array_equal(whole[:, :4], w)


def test_two_tensors_of_one_filter_share_no_memory() -> None:
    theta, jac = [np.ones(4) for _ in range(2)], [np.ones((1, 4)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"kalman_diag_step_: `p\[1\]` must not share memory with `p\[0\]`"):
        p = np.ones(4)
        lc.kalman_diag_step_(theta, [p, p], jac, [np.ones(4)] * 2)


@pytest.mark.parametrize(("op", "name"), CHANGED)
def test_what_is_changed_may_not_require_a_gradient(op: str, name: str) -> None:
    call = BY_NAME[op]
    arrays = tensors(call)
    arrays[name].requires_grad_()
    with pytest.raises(RuntimeError, match="must not require a gradient, got one that does; detach it") as caught:
        call.run(arrays)
    assert str(caught.value).startswith(f"{op}: `{name.partition('[')[0]}")
    with torch.no_grad():
        call.run(arrays)


# ---- DTensor -------------------------------------------------------------------------------------------------------

DTENSOR = """
import os, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import sys; sys.path[:0] = {path!r}
from every_operator import CALLS, tensors
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for call in CALLS:
    for name in call.arrays:
        arrays = tensors(call)
        arrays[name] = distribute_tensor(arrays[name], mesh, [Shard(0)])
        try:
            call.run(arrays)
            print("took", call.op, name)
        except (ValueError, TypeError) as error:
            if not str(error).startswith(f"{{call.op}}: `{{name}}` must hold memory of its own, got a DTensor"):
                print(call.op, name, error)
dist.destroy_process_group()
print("end")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_sharded_tensors_are_refused() -> None:
    code = DTENSOR.format(path=[p for p in sys.path if "tests" in p])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert (done.returncode, done.stdout.split()) == (0, ["end"]), done.stdout + done.stderr[-2000:]
