"""A copy of the tree, in which mutants are planted and tested: the tree itself is never changed.

The copy is a temporary folder that is removed at the end, also after Ctrl-C or a SIGTERM. Python writes no bytecode
there, so that no stale one can hide a mutant, and finds the package of the copy before an installed one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# What is not copied: results of builds, environments, and at the top of the tree runs of the command line.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "build", "dist", ".git", ".venv*", ".*_cache", ".hypothesis")
# An editable installation's hook finds its own package before PYTHONPATH. Python imports this module at its start.
_HOOK = """\
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_{package}"]
"""
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - .*)?$", re.M)
# Without words for a failed assertion, which would cost as much as many tests.
_PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "--no-header", "--assert=plain")
_NO_TESTS = 5  # pytest's status
# Packages that tests import, which take long to. The one under test is none of them.
PRELOADED = (
    "numpy",
    "scipy.linalg",
    "torch",
    "hypothesis",
    "hypothesis.stateful",
    "expecttest",
    "safetensors",
    "pytest",
)
_SERVER = Path(__file__).with_name("server.py")
# Tests have a limit of processor time, so that neither a busy machine nor a stopped one shows in the results. What
# waits for ever is ended after so many times that limit.
_WALL = 10


class Trial(NamedTuple):
    """How a run of tests ended."""

    caught: bool
    by: str  # the test that failed, or what else happened; "" if nothing did
    seconds: float


class Copy:
    """`with Copy(root, package) as copy`: a copy of `root`, whose package is at `python/<package>`.

    `extension`: a compiled module that is put into the package; None if there is none, or it is built in the copy.
    `cpu_limit`: seconds of processor time for a run of tests. `preload`: what is imported once for all runs of tests.
    """

    def __init__(
        self,
        root: Path,
        package: str,
        extension: Path | None = None,
        *,
        cpu_limit: int = 300,
        preload: Sequence[str] = PRELOADED,
    ) -> None:
        self._root, self._package, self._extension, self._cpu_limit = root, package, extension, cpu_limit
        self._preload = preload
        self._running: subprocess.Popen[str] | None = None
        self._server: subprocess.Popen[str] | None = None
        self._stopped = False

    def __enter__(self) -> Copy:
        self._folder = tempfile.TemporaryDirectory(prefix="mutate-")
        self.tree = Path(self._folder.name).resolve() / "tree"
        shutil.copytree(self._root, self.tree, ignore=self._left_out, symlinks=True)
        hook = self.tree.parent / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(_HOOK.format(package=self._package))
        if self._extension is not None:
            shutil.copy2(self._extension, self.tree / "python" / self._package)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(hook), str(self.tree / "python")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return self

    def _left_out(self, folder: str, names: list[str]) -> set[str]:
        return _LEFT_OUT(folder, names) | ({"runs"} if Path(folder) == Path(self._root) else set())

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        """Ends what runs in the copy, and lets nothing more run there."""
        self._stopped = True
        for process in (self._running, self._server):
            if process is not None:
                _kill(process)

    def check(self) -> None:
        """Raises RuntimeError unless Python imports the package, and its extension, from the copy."""
        names = f"{self._package}, {self._package}._core as core" if self._extension else f"{self._package} as core"
        code = f"import {names}; print(core.__file__); print(__import__('{self._package}').__file__)"
        status, output = self.run([sys.executable, "-c", code])
        found = [Path(line) for line in output.split()]
        if status or len(found) != 2 or not all(path.is_relative_to(self.tree) for path in found):
            raise RuntimeError(f"mutate: `{self._package}` must be imported from the copy {self.tree}, got: {output}")

    def write(self, path: str, text: str) -> None:
        """Replaces a file of the copy."""
        (self.tree / path).write_text(text, encoding="utf-8")

    def pytest(self, tests: Sequence[str]) -> Trial:
        """Runs test files, or single tests, up to the first failure."""
        started = time.monotonic()
        status, output = self._served([*_PYTEST, *tests])
        seconds = time.monotonic() - started
        if status == _NO_TESTS:
            raise RuntimeError(f"mutate: there are no tests in {' '.join(tests)}")
        if status == 0:
            return Trial(False, "", seconds)
        failed = _FAILED.search(output)
        return Trial(True, failed.group(1) if failed else _how_it_ended(status, output), seconds)

    def _served(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Status and output of pytest, in a child of a process that is made at the first call."""
        if self._server is None:
            command = [sys.executable, str(_SERVER), *self._preload]
            self._server = self._started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output = self.tree.parent / "output"
        task = {"arguments": arguments, "output": str(output), "cpu_limit": self._cpu_limit}
        asked, answers = self._server.stdin, self._server.stdout
        assert asked is not None and answers is not None
        asked.write(json.dumps(task) + "\n")
        asked.flush()
        ready, _, _ = select.select([answers], [], [], _WALL * self._cpu_limit)
        if self._stopped:
            raise RuntimeError("mutate: the run was stopped")
        if not ready:
            _kill(self._server)
            self._server = None
            return -signal.SIGXCPU, "waited too long"
        return json.loads(answers.readline())["status"], output.read_text(errors="replace")

    def _started(
        self, command: Sequence[str], *, stdin: int, stdout: int, stderr: int | None = None
    ) -> subprocess.Popen[str]:
        if self._stopped:
            raise RuntimeError("mutate: the run was stopped")
        return subprocess.Popen(
            command, cwd=self.tree, env=self._environment, text=True, errors="replace", start_new_session=True,
            stdin=stdin, stdout=stdout, stderr=stderr,
        )  # fmt: skip

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit status and output of a command in the copy. It is ended with all that it started if this run ends."""
        running = self._running = self._started(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = running.communicate(timeout=_WALL * self._cpu_limit)
        except subprocess.TimeoutExpired:
            return -signal.SIGXCPU, "waited too long"
        finally:
            _kill(running)
            self._running = None
        if self._stopped:
            raise RuntimeError("mutate: the run was stopped")
        return running.returncode, output


def _how_it_ended(status: int, output: str) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time limit"
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    last = [line for line in output.splitlines() if line.strip()]
    return f"status {status}: {last[-1] if last else 'no output'}"


def _kill(process: subprocess.Popen[str]) -> None:
    """The process and all that it started; a server ends its tests, which are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
