"""Weights and gradients that are not ordinary memory: worked with where that is possible, refused by name where not."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lowrank_core.ops.arrays import are_ordinary, overlaps_itself
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, param_groups
from optim_cases import draw, same
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

DTENSOR = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from lowrank_core.optim import GaLoreAdamW

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for placement in (Shard(0), Shard(1), Replicate()):
    sharded = distribute_tensor(torch.randn(12, 20), mesh, [placement])
    for rank in (3, None):
        try:
            GaLoreAdamW([("head.weight", nn.Parameter(sharded))], rank=rank)
        except NotImplementedError as error:
            print(error)
    class Wrapped(nn.Parameter):
        grad = property(lambda self: sharded)
    wrapped = Wrapped(torch.randn(12, 20))
    try:
        GaLoreAdamW([("tail.weight", wrapped)], rank=3).step()
    except NotImplementedError as error:
        print(error)
"""


def test_distributed_tensors_are_refused_by_name() -> None:
    done = subprocess.run([sys.executable, "-c", DTENSOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parameter = (
        "GaLoreAdamW: `head.weight` must hold memory of its own, got a DTensor; give the optimizer whole, local tensors"
    )
    gradient = parameter.replace("GaLoreAdamW: `head.weight`", "step: the gradient of `tail.weight`")
    assert done.stdout.splitlines() == [parameter, parameter, gradient] * 3


def test_a_weight_whose_memory_was_freed_is_refused() -> None:
    weight, empty = nn.Parameter(draw(12, 20)), nn.Parameter(torch.empty(0, 20))
    optimizer = GaLoreAdamW([("weight", weight), ("empty", empty)], rank=3)
    weight.grad, empty.grad = draw(12, 20, seed=1), torch.empty(0, 20)
    optimizer.step()  # no elements need no memory
    weight.untyped_storage().resize_(0)  # as sharding wrappers do between uses
    with pytest.raises(NotImplementedError, match="step: `weight` must hold memory of its own, got a Parameter"):
        optimizer.step()


def test_a_model_on_the_meta_device_can_be_planned_and_not_stepped() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 8))
    optimizer = GaLoreAdamW(param_groups(model, rank=4, verbose=False))
    assert [row.projected for row in optimizer.plan()] == [False, False, True, True]
    assert optimizer.state_bytes() == 0
    assert optimizer.planned_state_bytes() == estimate_state_bytes(model, rank=4)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    with pytest.raises(
        NotImplementedError, match=r"^step: `0.weight` must hold memory of its own, got .* meta device; load"
    ):
        optimizer.step()
    assert not optimizer.state


def test_fake_tensors_can_be_planned_and_not_stepped() -> None:
    with FakeTensorMode():
        model = nn.Linear(30, 40)
        optimizer = GaLoreAdamW(param_groups(model, rank=4, verbose=False))
        assert optimizer.planned_state_bytes() == estimate_state_bytes(nn.Linear(30, 40), rank=4)
        model.weight.grad = torch.zeros_like(model.weight)
        with pytest.raises(NotImplementedError, match=r"^step: `weight` must hold memory of its own, got a FakeTensor"):
            optimizer.step()
    assert optimizer.state_bytes() == 0


class Labelled(nn.Parameter):
    """A harmless subclass with ordinary memory, as libraries hang their labels on."""


def test_subclasses_with_ordinary_memory_step() -> None:
    plain, labelled = nn.Parameter(draw(12, 20)), Labelled(draw(12, 20))
    for weight in (plain, labelled):
        optimizer = GaLoreAdamW([weight], lr=0.1, rank=3)
        for seed in (1, 2):
            weight.grad = draw(12, 20, seed=seed)
            optimizer.step()
    assert torch.equal(plain, labelled)


@pytest.mark.parametrize("proj_type", ["std", "full"])
@pytest.mark.parametrize("rank", [3, None])
def test_lazily_negated_gradients_are_read_as_what_they_mean(rank: int | None, proj_type: str) -> None:
    ends = []
    for lazy in (True, False):
        weight = nn.Parameter(draw(12, 20))
        optimizer = GaLoreAdamW([weight], lr=0.1, rank=rank, proj_type=proj_type)
        for seed in (1, 2):
            grad = draw(12, 20, seed=seed)
            weight.grad = torch._neg_view(grad) if lazy else -grad
            assert weight.grad.is_neg() == lazy
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_a_lazily_negated_weight_is_refused() -> None:
    weight = nn.Parameter(torch._neg_view(draw(12, 20)))
    weight.grad = draw(12, 20, seed=1)
    with pytest.raises(RuntimeError, match=r"^step: `w` must be no lazily negated"):
        GaLoreAdamW([("w", weight)], rank=3).step()


def test_what_needs_no_closer_look() -> None:
    class Labelled(Tensor):
        pass

    usual = [draw(12, 20), nn.Parameter(draw(3)), draw(4, 6).T, draw(2).bfloat16(), torch.empty(0), torch.ones(())]
    assert are_ordinary(usual)
    others = [
        torch._neg_view(draw(3)), draw(3).as_subclass(Labelled), draw(1).expand(3), torch.ones(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.complex64), torch.empty(3, device="meta"), torch.eye(3).to_sparse(), None,
    ]  # fmt: skip
    with FakeTensorMode():
        others.append(torch.empty(3))
    freed = draw(3)
    freed.untyped_storage().resize_(0)
    for other in [*others, freed]:
        assert not are_ordinary([*usual, other]), other


@pytest.mark.parametrize(
    ("size", "stride", "overlaps"),
    [
        ((4, 6), (6, 1), False),
        ((4, 6), (1, 4), False),
        ((4, 6), (0, 1), True),
        ((4, 6), (1, 0), True),
        ((1, 6), (0, 1), False),
        ((4, 6), (1, 1), True),
        ((4, 6), (5, 1), True),
        ((4, 6), (12, 2), False),
        ((4, 6), (2, 8), False),
        ((2, 3, 4), (12, 4, 1), False),
        ((2, 3, 4), (11, 4, 1), True),
        ((0, 6), (0, 1), False),
    ],
)
def test_overlap_is_a_matter_of_strides(size: tuple[int, ...], stride: tuple[int, ...], overlaps: bool) -> None:
    tensor = torch.empty(100).as_strided(size, stride)
    offsets = torch.arange(100).as_strided(size, stride)
    assert overlaps_itself(tensor) == overlaps == (offsets.unique().numel() < offsets.numel())


@pytest.mark.parametrize("rank", [3, None])
def test_a_weight_that_overlaps_itself_is_refused(rank: int | None) -> None:
    weight = nn.Parameter(draw(1, 24).expand(16, 24))
    weight.grad = draw(16, 24, seed=1)
    with pytest.raises(RuntimeError, match=r"^step: `w` \(16, 24\) must not overlap itself .* \(0, 1\); clone it"):
        GaLoreAdamW([("w", weight)], rank=rank).step()


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("keys", [{}, {"moment_dtype": "int8"}, {"proj_type": "full"}, {"projector": "svd"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_another_default_device_does_not_matter(keys: dict[str, Any], dtype: torch.dtype) -> None:
    ends = []
    for device in ("cpu", "meta"):
        weights = [nn.Parameter(draw(16, 24).to(dtype)), nn.Parameter(draw(24).to(dtype))]
        optimizer = GaLoreAdamW(weights, lr=0.1, rank=3, update_proj_gap=2, rounding="stochastic", **keys)
        for seed in range(1, 5):
            for weight in weights:
                weight.grad = draw(*weight.shape, seed=seed).to(dtype)
            with default_device(device):
                optimizer.step()
        with default_device(device):
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict(saved)
        ends.append([[w.detach() for w in weights], optimizer.state_dict()["state"]])
    assert same(*ends)


def test_weights_that_share_their_memory_are_stepped_one_after_the_other() -> None:
    """Two parameters over one storage, as a careless tie leaves them: as with torch's AdamW, both steps count."""

    def run(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        memory = draw(64, 48)
        pair = [nn.Parameter(memory.view(64, 48)), nn.Parameter(memory.view(64, 48))]
        optimizer = GaLoreAdamW(pair, lr=0.1, rank=4)
        for seed in range(1, 4):
            for number, weight in enumerate(pair):
                weight.grad = draw(64, 48, seed=10 * seed + number)
            optimizer.step()
        torch.set_num_threads(1)
        return memory

    assert torch.equal(run(1), run(2)) and torch.equal(run(1), run(3))


def test_lazy_parameters_are_refused_until_they_have_a_shape() -> None:
    model = nn.LazyLinear(8)
    with pytest.raises(ValueError, match=r"^GaLoreAdamW: `weight` must have a shape, got one that is still lazy; run"):
        GaLoreAdamW(model.named_parameters(), rank=3)
    model(draw(4, 12))
    assert [row.projected for row in GaLoreAdamW(model.named_parameters(), rank=3).plan()] == [True, False]


def test_parameters_that_were_flattened_behind_the_optimizer() -> None:
    """As DeepSpeed's ZeRO does: one vector for all parameters of a group."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = GaLoreAdamW(model.named_parameters(), rank=2)
    flat = nn.Parameter(torch.cat([param.detach().flatten() for param in model.parameters()]))
    optimizer.param_groups[0]["params"] = [flat]
    flat.grad = torch.ones_like(flat)
    with pytest.raises(ValueError, match=r"^step: `params` of a group must be the 4 that it was made with, got"):
        optimizer.step()
