"""The contract that every optimizer of the package keeps about its state: the table of test_contract.py."""

from __future__ import annotations

import copy
import io
import pickle
from math import prod
from pathlib import Path

import pytest
import torch
from lowrank_core.optim import METHODS, estimate_state_bytes, methods
from optim_cases import CASES, RANK, Case, Zoo, backward, every_dtype, every_optimizer, same, snapshot, train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CODED = {"bfloat16": (torch.bfloat16,), "int8": (torch.int8, torch.uint8, torch.float32)}


@every_optimizer
@every_dtype
def test_resume_is_bit_for_bit(case: Case, dtype: torch.dtype) -> None:  # traps T1, T2, T7, T9
    model = Zoo(dtype)
    optimizer = case.make(model.parameters(), weight_decay=0.1)
    train(model, optimizer, range(5))  # two steps into the second period
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Zoo(dtype)
    resumed.load_state_dict(saved["model"])
    fresh = case.make(resumed.parameters(), weight_decay=0.1)
    fresh.load_state_dict(saved["optimizer"])
    assert len(fresh.state) == len(optimizer.state) > 0
    assert same(optimizer.state_dict(), fresh.state_dict())
    assert train(model, optimizer, range(5, 12)) == train(resumed, fresh, range(5, 12))
    assert same(snapshot(model, optimizer), snapshot(resumed, fresh))


@every_optimizer
@every_dtype
def test_loading_copies(case: Case, dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    optimizer = case.make(model.parameters())
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = case.make(copy.deepcopy(model).parameters())
    other.load_state_dict(saved)
    train(model, optimizer, range(2, 4))
    assert same(other.state_dict()["state"], before["state"])


@every_optimizer
@every_dtype
def test_state_is_flat_tensors_and_plain_numbers(case: Case, dtype: torch.dtype) -> None:  # trap T9
    model = Zoo(dtype)
    optimizer = case.make(model.parameters())
    train(model, optimizer, range(2))
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for state in optimizer.state.values():
        assert state["format"] == 2
        for key, value in state.items():
            assert isinstance(key, str) and type(value) in (Tensor, int, float), key
            if key.startswith("exp_avg"):
                auto = "bfloat16" if dtype == torch.bfloat16 else "float32"
                stored = auto if case.moment_dtype == "auto" else case.moment_dtype
                assert value.dtype in CODED.get(stored, (work,))
            if key.startswith("proj.basis") and case.method == "qgalore":
                assert value.dtype == (torch.uint8 if key.endswith(".codes") else torch.bfloat16)
            elif key.startswith("proj.basis"):
                assert value.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else work)


@every_optimizer
def test_state_exports_to_safetensors(case: Case, tmp_path: Path) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters())
    train(model, optimizer, range(4))
    saved = optimizer.state_dict()
    tensors = {f"{i}/{k}": v for i, s in saved["state"].items() for k, v in s.items() if isinstance(v, Tensor)}
    save_file(tensors, tmp_path / "state.safetensors")
    loaded = load_file(tmp_path / "state.safetensors")
    state = {i: {k: loaded.get(f"{i}/{k}", v) for k, v in s.items()} for i, s in saved["state"].items()}
    other = case.make(copy.deepcopy(model).parameters())
    other.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    assert same(saved, other.state_dict())


@every_optimizer
@every_dtype
def test_state_bytes_equal_the_estimate(case: Case, dtype: torch.dtype) -> None:
    model = Zoo(dtype)
    del model.unused  # without a gradient it would never have a state
    optimizer = case.make(model.parameters())
    assert optimizer.state_bytes() == 0
    train(model, optimizer, range(4))
    keys = {key: value for key, value in case.keys.items() if key != "rank"}
    shapes = [p.shape for p in model.parameters()]
    planned = optimizer.planned_state_bytes()
    assert optimizer.state_bytes() <= planned if case.moves else optimizer.state_bytes() == planned
    keys = {key: value for key, value in keys.items() if key not in ("sign_scale", "stagger")}
    assert planned == estimate_state_bytes(shapes, case.method, rank=case.rank, dtype=dtype, **keys)


@every_optimizer
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_alike(case: Case, how: str) -> None:
    model = Zoo()
    optimizer = case.make(model.parameters())
    train(model, optimizer, range(4))
    backward(model, 4)
    model.gain.grad.fill_(torch.nan)
    optimizer.step()
    pair = (model, optimizer)
    twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert copied.skipped_steps == 1
    train(model, optimizer, range(5, 9))
    train(twin, copied, range(5, 9))
    assert same(snapshot(model, optimizer), snapshot(twin, copied))
    assert copied.projections() == optimizer.projections()


@every_optimizer
def test_a_late_group_is_checked_and_trained(case: Case) -> None:
    model = Zoo()
    optimizer = case.make([model.up.weight])
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": [model.down.weight, model.down.bias], "lr": 0.5})
    with pytest.raises(TypeError, match="`ranks` must be one of its keys, got ranks; known keys: "):
        optimizer.add_param_group({"params": [model.gain], "ranks": 3})
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, range(2, 4))
    assert int(optimizer.state[model.down.weight]["step"]) == 2
    counts = not case.searches and "proj.captured" in optimizer.state[model.down.weight]  # what it chose in each step
    assert optimizer.projections()[1].refreshes == (2 if counts else 1)


@every_optimizer
def test_projections_report_every_subspace(case: Case) -> None:
    model = Zoo()
    optimizer = case.make(model.named_parameters())
    assert all(p.captured is None and p.refreshes == 0 for p in optimizer.projections())
    train(model, optimizer, range(8))
    found = {p.name: p for p in optimizer.projections()}
    assert found.pop("unused").last_refresh_step is None
    assert found.keys() == {"embed.weight", "conv.weight", "up.weight", "down.weight", "square.weight"}
    measured = any("proj.captured" in state for state in optimizer.state.values())
    for projection in found.values():
        assert projection.captured is not None if measured else projection.captured is None
        assert not measured or ((projection.rank == 0) == (projection.captured == 0) and projection.captured <= 1.0)
        looked = (projection.refreshes, projection.last_refresh_step)
        assert looked == ((3, 6) if case.searches else (8, 7) if measured else (1, 0))
        whole = min(projection.shape[0], prod(projection.shape[1:]))
        rank = case.rank if case.rank_held == RANK else case.rank_held
        ranks = {0, whole} if case.moves else {whole if projection.side == "whole" else rank}
        assert projection.rank in ranks


def test_every_method_keeps_the_contract() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {kind.__module__.rpartition(".")[2] for kind in METHODS.values()}
    assert {case.method for case in CASES} == METHODS.keys()
    assert all(type(case.make([nn.Parameter(torch.ones(6, 8))])) is METHODS[case.method] for case in CASES)
