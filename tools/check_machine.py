"""Says in one sentence what a machine lacks for the build. Runs before there is a virtual environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 11)  # that the versions in constraints.txt run on


def missing() -> Iterator[str]:
    """What is missing and how to get it."""
    running = "{}.{}".format(*sys.version_info)
    if sys.version_info < OLDEST:
        yield f"Python {running} is too old; name another, such as `make PYTHON=python3.11 test`"
    if importlib.util.find_spec("ensurepip") is None:
        yield f"Python has no ensurepip; `apt-get install python{running}-venv`"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        yield f"Python.h is missing; `apt-get install python{running}-dev`"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        yield f"there is no C++ compiler `{compiler}`; `apt-get install g++`, or set CXX"


def main() -> int:
    lacking = list(missing())
    for what in lacking:
        print(f"lowrank_core cannot be built here: {what}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
