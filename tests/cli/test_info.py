"""`info`, and what the command line does without torch and before a command is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import lowrank_core
import pytest
from lowrank_core import _core
from lowrank_core.cli.info import openmp_libraries

MAIN = "import sys; from lowrank_core.cli import main; sys.exit(main(sys.argv[1:]))"
WITHOUT_TORCH = """
import importlib.util, sys
hidden = ("torch", "safetensors", "tqdm", "matplotlib")
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find(name, package)
from lowrank_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def test_json(cli):
    outcome = cli("info", "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert facts["instruction_sets"]["active"] == _core.isa() in facts["instruction_sets"]["available"]
    assert facts["threads"]["lowrank_core"] == _core.num_threads()
    assert facts["build"]["compiler"] and facts["torch"]["version"] and facts["versions"]["numpy"]


def test_table(cli):
    out = cli("info").out
    assert "instruction set" in out and "OpenMP runtime" in out and "torch" in out


def test_override_is_shown_and_a_wrong_one_refused():
    forced = python(MAIN, "info", "--json", LOWRANK_CORE_ISA="generic")
    assert json.loads(forced.stdout)["instruction_sets"] | {"available": []} == {
        "active": "generic", "available": [], "override": "generic",
    }  # fmt: skip
    wrong = python(MAIN, "info", LOWRANK_CORE_ISA="mmx")
    assert wrong.returncode == 2 and "LOWRANK_CORE_ISA" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_second_openmp_runtime_is_reported(tmp_path, cli, monkeypatch):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 11 /usr/lib/libgomp.so.1.0.0\n"
        "7f01-7f02 r--p 00000000 08:01 11 /usr/lib/libgomp.so.1.0.0\n"
        "7f02-7f03 r-xp 00000000 08:01 12 /site packages/x.libs/libgomp-a34b3233.so.1\n"
        "7f03-7f04 r-xp 00000000 08:01 13 /usr/lib/libgompx.so\n"
        "7f04-7f05 rw-p 00000000 00:00 0\n"
        "7f05-7f06 r-xp 00000000 08:01 14 /opt/intel/libiomp5.so (deleted)\n"
    )
    found = openmp_libraries(maps)
    assert found == [
        "/opt/intel/libiomp5.so",
        "/site packages/x.libs/libgomp-a34b3233.so.1",
        "/usr/lib/libgomp.so.1.0.0",
    ]
    monkeypatch.setattr("lowrank_core.cli.info.openmp_libraries", lambda: found)
    assert "more than one OpenMP runtime" in cli("info").out
    assert openmp_libraries(tmp_path / "missing") == []


def test_without_torch():
    info = python(WITHOUT_TORCH, "info")
    assert info.returncode == 0 and "torch" in info.stdout and "not installed" in info.stdout
    for command in (["train"], ["bench", "step"]):
        refused = python(WITHOUT_TORCH, *command)
        assert refused.returncode == 2 and "pip install '.[train]'" in refused.stderr
        assert refused.stderr.count("\n") == 1
    estimate = python(WITHOUT_TORCH, "estimate")
    assert estimate.returncode == 0 and "galore" in estimate.stdout


def test_help_is_light():
    """No torch, no matplotlib; the parser itself takes well under 0.3 s after Python and NumPy are up."""
    code = (
        "import sys, time, numpy; start = time.process_time()\n"
        "from lowrank_core.cli import build_parser\n"
        "text = build_parser().format_help(); print(time.process_time() - start)\n"
        "print(sorted({'torch', 'matplotlib', 'safetensors', 'cupy'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        spent, loaded = python(code).stdout.splitlines()
        assert loaded == "[]"
        seconds.append(float(spent))
    assert min(seconds) < 0.3


@pytest.mark.parametrize("command", [[], ["train"], ["estimate"], ["info"], ["bench"], ["bench", "step"]])
def test_help(cli, command):
    outcome = cli(*command, "--help")
    assert outcome.code == 0 and outcome.out.startswith("usage: lowrank-core") and outcome.err == ""


def test_no_command(cli):
    outcome = cli()
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "COMMAND is missing; it must be train, finetune, estimate, info or bench" in outcome.err


def test_version(cli):
    assert cli("--version").out == f"lowrank-core {lowrank_core.__version__}\n"


def test_broken_installations_are_named(tmp_path):
    """A package that is found and cannot be imported is a fact, no traceback."""
    for name in ("torch", "cupy"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libcuda.so.1: not found')")
    info = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {MAIN}", "info")
    assert info.returncode == 0 and info.stderr == ""
    assert info.stdout.count("cannot be imported (OSError: libcuda.so.1: not found)") == 2


def test_closed_pipe_is_no_error():
    start = time.monotonic()
    code = "import sys; from lowrank_core.cli import main; sys.exit(main(['info']))"
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -u -c "{code}" | true'], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and time.monotonic() - start < 60
