"""What runs where torch is not installed, and what the rest says then."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lowrank_core import memory

# As where it is not installed: nothing of that name is found, however it is asked for.
WITHOUT = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

HIDDEN = "torch"
sys.meta_path.insert(0, Hidden())
"""


def without_torch(code: str, setup: str = WITHOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "statement",
    ["import lowrank_core.optim", "from lowrank_core.optim import GaLoreAdamW", "import lowrank_core.adapters"],
)
def test_what_needs_torch_says_so(statement: str) -> None:
    done = without_torch(statement)
    package = "adapters" if "adapters" in statement else "optim"
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert sentence.startswith(f"ModuleNotFoundError: lowrank_core.{package}: needs torch, which is not installed; ")
    assert "`pip install torch`" in sentence and "`pip install '.[torch]'`" in sentence
    assert "During handling" not in done.stderr


def test_a_torch_that_misses_something_itself_says_what() -> None:
    broken = "import sys, types\nsys.path_hooks.insert(0, None) if False else None\n"
    setup = broken + WITHOUT.replace('name.partition(".")[0] == HIDDEN', 'name == "torch"').replace(
        "name=name)", 'name="sympy")'
    )
    done = without_torch("import lowrank_core.optim", setup)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'torch'"


def test_the_estimate_from_shapes() -> None:
    shapes = {"embed.weight": (100, 64), "up.weight": (64, 256), "norm.weight": (64,)}
    for keys in ({}, {"moment_dtype": "int8", "plain_moment_dtype": "float32", "proj_type": "full"}):
        call = f"memory.estimate_state_bytes({shapes!r}, rank=8, dtype='bfloat16', **{keys!r})"
        done = without_torch(f"from lowrank_core import memory; print({call})")
        assert done.stderr == "" and int(done.stdout) == memory.estimate_state_bytes(
            shapes, rank=8, dtype="bfloat16", **keys
        )


@pytest.mark.parametrize(
    "options", [["--preset", "60m"], ["--shape", "4096x11008*64"], []], ids=["preset", "shape", ""]
)
def test_the_command_estimate(options: list[str]) -> None:
    argv = ["estimate", *options, "--dtype", "bf16", "--moment-dtype", "int8", "--json"]
    call = f"from lowrank_core.cli import main; raise SystemExit(main({argv!r}))"
    done, as_ever = without_torch(call), without_torch(call, setup="")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(as_ever.stdout)
