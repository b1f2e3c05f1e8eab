"""Prints as JSON a hash of everything that the package computes: {threads: {call: hash, or how it was refused}}.

    python -S probe.py FOLDER THREADS...    with FOLDER, the place of the package under test, first on PYTHONPATH

`-S`, because an editable installation of another tree hooks into `site` and would win. Only public names are used, for
revisions differ in their layout: an operator that one does not have is left out there. The level is LOWRANK_CORE_ISA.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lowrank_core
import operators
import torch
import trajectories
from lowrank_core import _core


def check_origin(folder: Path) -> None:
    """Exits where Python, or the extension, is that of another tree."""
    for module in (lowrank_core, _core):
        origin = Path(module.__file__ or "").resolve()
        if not origin.is_relative_to(folder.resolve()):
            sys.exit(f"probe: {module.__name__} must come from {folder}, got {origin}")


def digest(value: Any) -> str:
    """A hash of structure, dtypes, shapes and bytes; NaN equals itself, and 0 does not equal -0."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, (tuple, list)):
        yield f"{len(value)} values".encode()
        for member in value:
            yield from _parts(member)
    else:
        yield repr(value).encode()


def outcome(run: Any) -> str | None:
    """The hash of what `run` gives; the kind of error where it refuses; None for an option that it does not know."""
    try:
        return digest(run())
    except TypeError as error:
        return None if "unexpected keyword argument" in str(error) else "TypeError"
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return type(error).__name__


def report() -> dict[str, str]:
    found: dict[str, str] = {}
    for op, what, run in (*operators.calls(), *trajectories.calls()):
        name = f"{op}: {what}"
        if name in found:
            sys.exit(f"probe: two calls are named {name}")
        if (value := outcome(run)) is not None:
            found[name] = value
    return found


def main() -> None:
    check_origin(Path(sys.argv[1]))
    warnings.simplefilter("ignore")
    reports = {}
    for threads in sys.argv[2:]:
        torch.set_num_threads(int(threads))  # the kernels' too: they share one pool
        reports[threads] = report()
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
