"""torch.distributed.checkpoint: into a fresh optimizer, whose template comes from a step with gradients of zeros."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_cases import Case, Zoo, every_optimizer, same, snapshot, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)


def fresh(case: Case, dtype: torch.dtype) -> tuple[Zoo, Any]:
    model = Zoo(dtype)
    del model.unused  # which would have no state, as with every optimizer of torch
    return model, case.make(model.parameters(), weight_decay=0.1)


@lru_cache(maxsize=1)
def flattens_tied_weights() -> bool:
    """False for old torches, which look for the state of torch's own AdamW under both names of a tied weight."""
    model = Zoo()
    del model.unused
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, [0])
    optimizer.zero_grad()
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    try:
        set_optimizer_state_dict(model, optimizer, saved, options=options)
    except KeyError:
        return False
    return True


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.filterwarnings("ignore:torch.distributed is .*in a single process:UserWarning")  # one process is meant
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # old torches speak to themselves
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_it_comes_back_bit_for_bit(case: Case, dtype: torch.dtype, flat: bool, tmp_path: Path) -> None:
    if flat and not flattens_tied_weights():
        pytest.skip(f"torch {torch.__version__} cannot flatten the state of a tied weight")
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = fresh(case, dtype)
    train(model, optimizer, range(5))
    optimizer.zero_grad()
    saved = {"m": get_model_state_dict(model), "o": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path / "saved")
    twin, other = fresh(case, dtype)
    with torch.no_grad():
        for param in twin.parameters():
            param.add_(1)
    moved = [param.detach().clone() for param in twin.parameters()]
    into = {"m": get_model_state_dict(twin), "o": get_optimizer_state_dict(twin, other, options=options)}
    assert same(moved, [param.detach() for param in twin.parameters()])  # making the template moved no weight
    dcp.load(into, checkpoint_id=tmp_path / "saved")
    set_model_state_dict(twin, into["m"])
    set_optimizer_state_dict(twin, other, into["o"], options=options)
    assert same(snapshot(model, optimizer), snapshot(twin, other))
    train(model, optimizer, range(5, 9))
    train(twin, other, range(5, 9))
    assert same(snapshot(model, optimizer), snapshot(twin, other))
