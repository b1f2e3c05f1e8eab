"""DistributedDataParallel on two processes: the same bits on both, and those of one process with the mean gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lowrank_core.optim import GaLoreAdamW, param_groups
from torch import nn

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch is built without gloo", allow_module_level=True)

WORLD, STEPS = 2, 7


def make(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20)).to(dtype)


def optimizer_of(model: nn.Module, keys: dict[str, Any]) -> GaLoreAdamW:
    groups = param_groups(model, rank=4, update_proj_gap=3, verbose=False)
    return GaLoreAdamW(groups, lr=0.02, weight_decay=0.1, **keys)


def loss_of(model: nn.Module, rank: int, step: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(1000 * rank + step)).to(dtype)
    loss: torch.Tensor = (model(x) - x).square().mean()
    return loss


@dataclass(frozen=True)
class Case:
    name: str
    keys: dict[str, Any]
    dtype: torch.dtype = torch.float32
    bad_step: int = -1  # at which one process alone has gradients that are not finite


CASES = (
    Case("float32", {}),
    Case("a bad step on one process", {}, bad_step=4),
    Case("bfloat16 and int8", {"moment_dtype": "int8", "rounding": "stochastic"}, torch.bfloat16),
)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    for case in CASES:
        model = nn.parallel.DistributedDataParallel(make(case.dtype))
        optimizer = optimizer_of(model.module, case.keys)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, rank, step, case.dtype)
            (loss * (torch.inf if rank == 1 and step == case.bad_step else 1.0)).backward()
            optimizer.step()
        found = [model.module.state_dict(), optimizer.state_dict(), optimizer.skipped_steps]
        torch.save(found, f"{folder}/{case.name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they found for every case."""
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, args=(str(path),), nprocs=WORLD)
    return path


def alone(case: Case) -> tuple[nn.Module, GaLoreAdamW]:
    torch.set_num_threads(1)
    model = make(case.dtype)
    optimizer = optimizer_of(model, case.keys)
    for step in range(STEPS):
        optimizer.zero_grad()
        halves = []
        for rank in range(WORLD):
            model.zero_grad()
            loss_of(model, rank, step, case.dtype).backward()
            halves.append([p.grad / WORLD for p in model.parameters()])
        for p, *parts in zip(model.parameters(), *halves, strict=True):
            p.grad = sum(parts[1:], parts[0]) * (torch.inf if step == case.bad_step else 1.0)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_processes_have_the_bits_of_one_with_the_mean_gradients(case: Case, folder: Path) -> None:
    (first, first_state, skipped), (second, second_state, also_skipped) = (
        torch.load(folder / f"{case.name}-{rank}.pt", weights_only=True) for rank in range(WORLD)
    )
    assert skipped == also_skipped == (case.bad_step >= 0)
    model, optimizer = alone(case)
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], tensor), name
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            for other in (first_state, second_state):
                held = other["state"][index][key]
                assert torch.equal(held, value) if isinstance(value, torch.Tensor) else held == value, key
