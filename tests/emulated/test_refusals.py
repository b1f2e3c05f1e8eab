"""What a kernel that knows a GPU says of arrays there: the reason, and not that they are on a GPU."""

from __future__ import annotations

import lowrank_core as lc
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.arrays import call_named


class Plain(torch.Tensor):
    """A class of its own, whose memory is looked at before a kernel is called."""


def test_a_tensor_of_another_class_is_taken() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (lc.quantize_int4(one, group_size=32) for one in (x.as_subclass(Plain), x))
    assert torch.equal(ours.packed.as_subclass(torch.Tensor), theirs.packed)


def test_memory_that_is_shared_is_the_reason() -> None:
    packed, scales = torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"^op: `out` must not share memory with `scales`, got overlapping arrays"):
        call_named(
            "op", _core.dequantize_int4, scales.view(-1)[:8], packed.view(-1)[:16], scales.view(-1)[:1], None,
            arrays={"scales": scales}, dim=0, group_size=32, scheme="nf4",
        )  # fmt: skip


def test_a_kernel_of_the_host_alone_says_so() -> None:
    with pytest.raises(ValueError, match=r"^rsvd: `a` must be in host memory, got a CUDA array"):
        lc.rsvd(torch.ones(6, 5), rank=2)
