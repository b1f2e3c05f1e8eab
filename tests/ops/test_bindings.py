"""The private functions of the extension, called with arrays of shapes that no operator would pass: never a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_operator import CALLS, copies, tensors
from lowrank_core import _core

Given = tuple[list[Any], dict[str, Any]]
KERNELS = [name for name in dir(_core) if callable(getattr(_core, name)) and name[0].islower() and name != "set_isa"]


def recorded() -> list[tuple[str, Given]]:
    """What the operators pass to the extension, for one call of each."""
    found: list[tuple[str, Given]] = []
    originals = {name: getattr(_core, name) for name in KERNELS}

    def recording(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found.append((name, (list(args), options)))
            return originals[name](*args, **options)

        return call

    for name in KERNELS:
        setattr(_core, name, recording(name))
    try:
        for one in CALLS:
            one.run(tensors(one) if one.torch_only else copies(one))
    finally:
        for name, original in originals.items():
            setattr(_core, name, original)
    return found


def is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def others(a: Any) -> Iterator[Any]:
    """Arrays of the same dtype whose shape does not belong there, each of memory of its own."""
    shape = tuple(a.shape)
    shapes = {(0, *shape), (2, *shape), (), (3,), (0,), (0, 0), (0, 8, 8), (1, 0, 5), (1,) * 8, shape[:-1], shape[1:]}
    shapes |= {(*shape[:i], n, *shape[i + 1 :]) for i in range(len(shape)) for n in (0, 1, shape[i] + 1)}
    for other in sorted(shapes - {shape}):
        made = np.zeros(other, str(a.dtype).removeprefix("torch."))
        yield torch.from_numpy(made) if isinstance(a, torch.Tensor) else made


def varied(value: Any) -> Iterator[Any]:
    """`value` with one array of another shape, anywhere in its lists."""
    if is_array(value):
        yield from others(value)
    elif isinstance(value, (list, tuple)) and any(is_array(x) or isinstance(x, (list, tuple)) for x in value):
        yield []
        yield [*value, value[0]]
        for i, member in enumerate(value):
            for changed in varied(member):
                yield [*value[:i], changed, *value[i + 1 :]]


def replay() -> None:
    """Every recorded call with every change of one argument; prints how many there were."""
    count = refused = 0
    for name, (args, options) in recorded():
        changes = [([*args[:i], x, *args[i + 1 :]], options) for i, a in enumerate(args) for x in varied(a)]
        changes += [(args, {**options, key: x}) for key, a in options.items() for x in varied(a)]
        for some, rest in changes:
            count += 1
            sys.stdout.write(f"{name} {[getattr(x, 'shape', '') for x in some]}\n")
            sys.stdout.flush()
            try:
                getattr(_core, name)(*some, **rest)
            except (ValueError, TypeError, FloatingPointError):
                refused += 1
    sys.stdout.write(f"end {count} {refused}\n")


def test_shapes_that_do_not_fit_are_refused_and_never_crash() -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}; import test_bindings as t; t.replay()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"status {done.returncode} after {lines[-1:]}: {done.stderr[-500:]}"
    count, refused = map(int, lines[-1].split()[1:])
    assert lines[-1].startswith("end") and count > 1000 and refused > count / 2


@pytest.mark.parametrize("shape", [(0, 8, 8), (1, 8, 8), (8,), (8, 7)], ids=str)
def test_atoms_are_one_matrix(shape: tuple[int, ...]) -> None:
    g = np.ones((4, 8))
    out = np.empty(3, np.int64), np.empty((4, 3)), np.empty(())
    with pytest.raises(ValueError, match="dct_select: `atoms` has the wrong shape"):
        _core.dct_select(*out, g, basis="custom", atoms=np.ones(shape), side="right")
