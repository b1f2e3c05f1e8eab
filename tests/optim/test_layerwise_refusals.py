"""What `fused_backward` refuses, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layerwise_runs import every_stepping_inside, keys
from lowrank_core.optim import GaLoreAdamW, fused_backward
from optim_cases import Case, Zoo, loss_of
from torch import Tensor, distributed, nn


def made(model: nn.Module) -> GaLoreAdamW:
    return GaLoreAdamW(model.parameters(), rank=4)


def test_arguments() -> None:
    model = Zoo()
    optimizer = made(model)
    with pytest.raises(TypeError, match=r"^fused_backward: `model` must be a torch.nn.Module, got list$"):
        fused_backward([model], optimizer)
    with pytest.raises(
        TypeError,
        match=r"^fused_backward: `optimizer` must be one of lowrank_core that steps by gradients alone",
    ):
        fused_backward(model, torch.optim.AdamW(model.parameters()))
    for wrong in (0, -1.0, float("nan"), True, "1"):
        with pytest.raises(ValueError, match=r"^fused_backward: `max_norm` must be a number > 0, or None, got"):
            fused_backward(model, optimizer, max_norm=wrong)
    with pytest.raises(ValueError, match=r"^fused_backward: `clip` must be one of whole, projected, got 'all'$"):
        fused_backward(model, optimizer, max_norm=1.0, clip="all")
    with pytest.raises(ValueError, match=r"`max_norm` must be a number with clip='projected', got None$"):
        fused_backward(model, optimizer, clip="projected")
    with pytest.raises(ValueError, match=r"`optimizer` must have parameters of `model`, got none of them$"):
        fused_backward(Zoo(), optimizer)
    assert optimizer._source is None and not any(param._post_accumulate_grad_hooks for param in model.parameters())


def test_a_torch_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_available` is all that its `torch.distributed` has."""
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    for name in ("is_initialized", "get_world_size"):
        monkeypatch.delattr(distributed, name)
    model = Zoo()
    assert fused_backward(model, made(model)) is not None


def test_two_handles() -> None:
    model = Zoo()
    optimizer = made(model)
    handle = fused_backward(model, optimizer)
    with pytest.raises(ValueError, match=r"`optimizer` must have no handle yet, got one; call its remove\(\) first$"):
        fused_backward(model, optimizer)
    with pytest.raises(ValueError, match=r"`gain` must have no handle yet, got that of another optimizer$"):
        fused_backward(model, GaLoreAdamW(model.named_parameters(), rank=4))
    handle.remove()
    fused_backward(model, optimizer)


@every_stepping_inside
def test_whole_steps_of_what_steps_inside_backward(case: Case) -> None:
    model = Zoo()
    with pytest.raises(ValueError, match=r'^fused_backward: `nonfinite` must be "raise" for weights that are stepped'):
        fused_backward(model, case.make(model.parameters()))
    optimizer = case.make(model.parameters(), **keys(case))
    with pytest.raises(ValueError, match=r"^fused_backward: `max_norm` must be None for .*, which steps inside"):
        fused_backward(model, optimizer, max_norm=1.0)
    fused_backward(model, optimizer)
    optimizer.param_groups[0]["nonfinite"] = "skip"
    with pytest.raises(RuntimeError, match=r'^backward: `nonfinite` must be "raise" for weights that are stepped'):
        loss_of(model, 0).backward()


class Looked(nn.Module):
    """An embedding with a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).sum()


def test_sparse_gradients() -> None:
    model = Looked()
    fused_backward(model, GaLoreAdamW(model.named_parameters(), rank=2))
    with pytest.raises(RuntimeError, match=r"the gradient of `table.weight` must be dense"):
        model(torch.tensor([1, 2])).backward()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_gradients_that_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(8, 8)
    optimizer = GaLoreAdamW(model.parameters(), rank=4)
    with pytest.raises(NotImplementedError, match=r"`model` must be trained by one process in this version"):
        fused_backward(nn.parallel.DistributedDataParallel(model), optimizer)
    fused_backward(model, optimizer).remove()
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match=r"`model` must be trained by one process in this version"):
        fused_backward(model, optimizer)
