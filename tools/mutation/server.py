"""Runs pytest again and again, each time in a child of a process that has imported large packages: its arguments.

Reads lines of JSON, {"arguments": of pytest, "output": file, "cpu_limit": seconds of processor time}, and answers each
by one with the status. What a child has started ends with it, and all ends with the process that started this one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from functools import partial
from typing import Any


def serve() -> None:
    """Until the input ends."""
    parent = os.getppid()
    sys.path[0] = os.getcwd()  # as `python -m pytest`, in place of the folder of this file
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        signal.signal(signal.SIGTERM, partial(_end, child))
        status = _end_of(child, parent)
        print(json.dumps({"status": status}), flush=True)


def _run(task: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (task["cpu_limit"], task["cpu_limit"] + 5))
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    silence = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    status = 3  # pytest's, for an error of its own
    try:
        import pytest

        status = int(pytest.main(task["arguments"]))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_of(child: int, parent: int) -> int:
    """The status of the child, negative for a signal."""
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if os.getppid() != parent:  # which was killed
            _end(child)
        time.sleep(0.02)
    _kill(child)  # what it started and did not end
    return os.waitstatus_to_exitcode(status)


def _end(child: int, *_: object) -> None:
    """Ends the child and this process."""
    _kill(child)
    os._exit(1)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    serve()
