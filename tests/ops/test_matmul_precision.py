"""Every operator that multiplies in float32 passes on what torch's setting or its own argument asks for.

What a machine makes of "medium" differs (few multiply bfloat16 faster), so the compiled functions are listened to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lowrank_core as lc
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops import range_finder_list
from lowrank_core.ops.arrays import resolve_precision
from testing import cases, machine

SETTINGS = ("highest", "high", "medium")


def step(a: Any, **keys: Any) -> None:
    like = a.numpy() if isinstance(a, torch.Tensor) else a
    arrays = [like.copy(), like.copy(), like[:, :3].copy(), 0 * like[:3], 0 * like[:3]]
    w, g, p, first, second = (torch.from_numpy(x) if isinstance(a, torch.Tensor) else x for x in arrays)
    lc.subspace_step_([w], [g], [p], [first], [second], sides=["left"], steps=[1], lr=0.1, **keys)


# Operator, whether it has the argument, and the compiled functions that are told.
CALLS: dict[str, tuple[Callable[..., Any], bool, tuple[str, ...]]] = {
    "rsvd": (lambda a, **k: lc.rsvd(a, 3, **k), True, ("rsvd",)),
    "svd_lowrank": (lambda a: lc.svd_lowrank(a, 3), False, ("rsvd",)),
    "range_finder": (lambda a, **k: lc.range_finder(a, 3, **k), True, ("range_finder",)),
    "range_finder_list": (lambda a, **k: range_finder_list([a, a], [3, 2], **k), True, ("range_finder",)),
    "project left": (lambda a: lc.project(a, a[:, :3], side="left"), False, ("gemm",)),
    "project right": (lambda a: lc.project(a, a.T[:, :3], side="right"), False, ("gemm",)),
    "project_back": (lambda a: lc.project_back(a[:3], a[:, :3], side="left"), False, ("gemm",)),
    "subspace_step_": (step, True, ("subspace_project", "subspace_update")),
}
every_kind = pytest.mark.parametrize("kind", ["torch", "numpy"])


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The precisions that each compiled function was called with."""
    found: dict[str, set[str]] = {}

    def listen(name: str) -> None:
        compiled = getattr(_core, name)

        def called(*args: Any, **keys: Any) -> Any:
            found.setdefault(name, set()).add(keys["precision"])
            return compiled(*args, **keys)

        monkeypatch.setattr(_core, name, called)

    for name in {name for _, _, names in CALLS.values() for name in names}:
        listen(name)
    return found


def array(kind: str) -> Any:
    a = cases.gaussian(24, 40).float()
    return a if kind == "torch" else a.numpy()


@every_kind
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CALLS)
def test_torchs_setting(heard: dict[str, set[str]], name: str, setting: str, kind: str) -> None:
    call, _, functions = CALLS[name]
    with machine.matmul_precision(setting):
        call(array(kind))
    assert heard == {function: {setting} for function in functions}


@every_kind
@pytest.mark.parametrize("name", [name for name, (_, has, _) in CALLS.items() if has])
def test_the_argument_wins(heard: dict[str, set[str]], name: str, kind: str) -> None:
    call, _, functions = CALLS[name]
    for setting, asked in (("highest", "medium"), ("medium", "highest"), ("medium", "high")):
        heard.clear()
        with machine.matmul_precision(setting):
            call(array(kind), precision=asked)
        assert heard == {function: {asked} for function in functions}


def test_without_torch_it_is_the_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert resolve_precision("op", None) == "highest"
    assert resolve_precision("op", "medium") == "medium"
