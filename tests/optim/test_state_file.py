"""The state of an optimizer as a file: every method, every bit, in another process too; what does not fit changes
nothing."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core import tree_file
from lowrank_core.optim import LISA, GaLoreAdamW, load_state, save_state
from optim_cases import CASES, Case, Zoo, every_optimizer, same, snapshot, train
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def trained(case: Case, steps: int, dtype: torch.dtype = torch.float32) -> tuple[Zoo, Any]:
    model = Zoo(dtype)
    optimizer = case.make(model.named_parameters())
    train(model, optimizer, range(steps))
    return model, optimizer


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_next_steps_are_the_same_to_the_bit(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    """In the middle of a period, and over the refresh behind it."""
    model, optimizer = trained(case, 4, dtype)
    save_state(optimizer, tmp_path / "state")
    twin = copy.deepcopy(model)
    other = case.make(twin.named_parameters())
    load_state(other, str(tmp_path / "state"))
    assert same(snapshot(twin, other), snapshot(model, optimizer))
    train(model, optimizer, range(4, 9))
    train(twin, other, range(4, 9))
    assert same(snapshot(twin, other), snapshot(model, optimizer))


def test_another_process_goes_on(tmp_path: Path) -> None:
    """With every optimizer, one after the other in the same new process."""
    runs = {case.name: trained(case, 4) for case in CASES}
    for name, (model, optimizer) in runs.items():
        save_state(optimizer, tmp_path / f"{name}.state")
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    program = """
import sys, torch
from pathlib import Path
from lowrank_core.optim import load_state
from optim_cases import CASES, CASES, Zoo, train
folder = Path(sys.argv[1])
for case in CASES:
    model = Zoo()
    model.load_state_dict(torch.load(folder / f"{case.name}.pt", weights_only=True))
    optimizer = case.make(model.named_parameters())
    load_state(optimizer, folder / f"{case.name}.state")
    train(model, optimizer, range(4, 9))
    torch.save(model.state_dict(), folder / f"{case.name}.further")
"""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env={**os.environ, "PYTHONPATH": paths})
    for name, (model, optimizer) in runs.items():
        train(model, optimizer, range(4, 9))
        assert same(torch.load(tmp_path / f"{name}.further", weights_only=True), dict(model.state_dict())), name


def test_tensors_stand_under_readable_names(tmp_path: Path) -> None:
    _, optimizer = trained(Case("galore", GaLoreAdamW), 1)
    save_state(optimizer, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        assert "state_dict.state.0.exp_avg" in file.keys()  # noqa: SIM118
        assert file.metadata()["format"] == "lowrank_core.optimizer"


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, r"is damaged \(its checksum does not match\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.unlink(), "cannot be read .*No such file"),
        (lambda path: tree_file.write_tree(path, {}, "lowrank_core.train", "1"), "got lowrank_core.train, version 1"),
        (
            lambda path: save_file({"w": torch.ones(2)}, path),
            "must be of format lowrank_core.optimizer, ",
        ),
    ],
)
def test_a_foreign_or_damaged_file_changes_nothing(spoil: Any, message: str, tmp_path: Path) -> None:
    model, optimizer = trained(Case("galore", GaLoreAdamW), 2)
    save_state(optimizer, tmp_path / "state")
    spoil(tmp_path / "state")
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=f"load_state: the file .*{message}.*; nothing was changed"):
        load_state(optimizer, tmp_path / "state")
    assert same(snapshot(model, optimizer), before)


def other_names(case: Case) -> Any:
    return case.make([(f"model.{name}", p) for name, p in Zoo().named_parameters()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda case: case.make(Zoo().named_parameters(), rank=3), "`rank` of group 0 must be 4 as saved, got 3"),
        (lambda case: case.make(list(Zoo().named_parameters())[:3]), "must hold groups of .* parameters"),
        (other_names, "a parameter of group 0 must be `gain` as saved, got `model.gain`"),
        (lambda case: Case("x", type("Other", (GaLoreAdamW,), {})).make(Zoo().parameters()), "must be of Other, got"),
    ],
)
def test_what_does_not_fit_changes_nothing(make: Any, message: str, tmp_path: Path) -> None:
    case = Case("galore", GaLoreAdamW)
    _, optimizer = trained(case, 2)
    save_state(optimizer, tmp_path / "state")
    other = make(case)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        load_state(other, tmp_path / "state")
    assert same(other.state_dict(), before)


@pytest.mark.parametrize("call", [save_state, load_state])
@pytest.mark.parametrize("other", [torch.optim.AdamW([torch.zeros(3)]), 3])
def test_what_is_no_optimizer_of_ours_is_refused(call: Any, other: Any, tmp_path: Path) -> None:
    kind = type(other).__name__
    with pytest.raises(TypeError, match=f"{call.__name__}: `optimizer` must be one of lowrank_core, got {kind}"):
        call(other, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_lisa_is_saved_and_goes_on(tmp_path: Path) -> None:
    models = [nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (LISA(GaLoreAdamW(m.parameters(), rank=2), m, active=2, period=2) for m in models)
    inputs = torch.linspace(-1, 1, 18).reshape(3, 6)
    for optimizer, model, steps in ((one, models[0], 3), (other, models[1], 0)):
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    save_state(one, tmp_path / "state")
    models[1].load_state_dict(models[0].state_dict())
    load_state(other, tmp_path / "state")
    for optimizer, model in ((one, models[0]), (other, models[1])):
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    assert same(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = trained(Case("galore", GaLoreAdamW), 1)
    save_state(optimizer, tmp_path / "state")
    old = (tmp_path / "state").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(optimizer, tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    _, optimizer = trained(Case("galore", GaLoreAdamW), 1)
    optimizer.param_groups[0]["initial_lr"] = object()
    with pytest.raises(TypeError, match="must be a tensor or a plain value, got object"):
        save_state(optimizer, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_without_safetensors_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, tree_file.__name__)
    monkeypatch.delattr("lowrank_core.tree_file")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"save_state, load_state: need safetensors, .*\[train\]"):
        load_state(GaLoreAdamW([torch.nn.Parameter(torch.ones(4, 5))], rank=2), tmp_path / "state")
