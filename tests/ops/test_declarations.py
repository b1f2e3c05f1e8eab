"""Families declare, torch registers: all of it, once, when the first tensor arrives."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import torch
from lowrank_core.ops.declare import DECLARED, NAMESPACE
from lowrank_core.ops.operators import torch_ops

FIRST_TENSOR = """
import sys, torch, lowrank_core as lc
from lowrank_core.ops.declare import DECLARED
ours = lambda: {name.removeprefix("lowrank_core::") for name in torch._C._dispatch_get_all_op_names()
                if name.startswith("lowrank_core::")}
families = sorted(DECLARED)
assert not ours() and "lowrank_core.ops.torch_registry" not in sys.modules
lc.chain_matmul([torch.eye(2, requires_grad=True)])  # one that nobody looks at may need none
assert ours() == {op.name for operators in DECLARED.values() for op in operators}, ours()
print(*families)
"""


def test_the_first_tensor_registers_every_operator() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_TENSOR], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split() == sorted(DECLARED)


@pytest.mark.parametrize("family", DECLARED)
def test_every_rule_is_of_an_operator(family: str) -> None:
    """A name that was mistyped would take the derivative away."""
    torch_ops()
    rules = import_module(f"lowrank_core.ops.{family}.autograd").RULES
    assert rules.keys() <= {op.name for op in DECLARED[family]}


def test_no_operator_is_declared_twice() -> None:
    torch_ops()
    names = [op.name for operators in DECLARED.values() for op in operators]
    assert len(names) == len(set(names)) > 0
    assert all(hasattr(getattr(torch.ops, NAMESPACE), name) for name in names)
