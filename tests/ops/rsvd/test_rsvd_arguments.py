"""Numbers as arguments: what counts as an integer, and how far it may go."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import lowrank_core
import numpy as np
import pytest
from test_rsvd_refusals import COLS, MAX, ROWS, numpy_array, torch_array


@pytest.mark.parametrize("value", [2.0, "2", None, True], ids=repr)
def test_integers_must_be_integers(value: Any) -> None:
    a = numpy_array(ROWS, COLS)
    for name, call in (
        ("rank", lambda: lowrank_core.rsvd(a, value)),
        ("oversample", lambda: lowrank_core.rsvd(a, 2, oversample=value)),
        ("niter", lambda: lowrank_core.rsvd(a, 2, niter=value)),
        ("seed", lambda: lowrank_core.rsvd(a, 2, seed=value)),
    ):
        with pytest.raises(TypeError, match=f"rsvd: `{name}` must be an integer, got {value!r}"):
            call()


def test_the_largest_oversampling_is_the_full_width() -> None:
    """In a process of its own: it may not survive."""
    code = (
        "import numpy, lowrank_core\n"
        "a = numpy.random.default_rng(0).standard_normal((7, 5))\n"
        "s = [lowrank_core.rsvd(a, 2, oversample=p).s for p in (5, 2**63 - 1)]\n"
        "assert (s[0] == s[1]).all()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numpy_integers_are_integers() -> None:
    for make in (numpy_array, torch_array):
        a = make(ROWS, COLS)
        one = lowrank_core.rsvd(a, np.int64(2), oversample=np.int32(3), niter=np.int8(1), seed=np.int64(4))
        two = lowrank_core.rsvd(a, 2, oversample=3, niter=1, seed=4)
        assert (one.s == two.s).all()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"rank": 2.5}, TypeError, "rsvd: `rank` must be an integer, got 2.5"),
        ({"rank": True}, TypeError, "rsvd: `rank` must be an integer, got True"),
        ({"rank": 2, "seed": 2**63}, ValueError, f"rsvd: `seed` must be between 0 and {MAX}, got {2**63}"),
        ({"rank": 2, "basis": np.ones((ROWS, 1))}, TypeError, "rsvd: `basis` must be of the same library"),
    ],
    ids=repr,
)
def test_torch_gets_the_same_sentences(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        lowrank_core.rsvd(torch_array(ROWS, COLS), **options)
