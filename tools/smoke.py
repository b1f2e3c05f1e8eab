"""Tries an installed package with NumPy alone: `python smoke.py cuda|no-cuda` says what the build must hold."""

from __future__ import annotations

import sys
from importlib import metadata, resources

import lowrank_core
import numpy as np
from lowrank_core import _core


def main() -> None:
    assert "torch" not in sys.modules and "cupy" not in sys.modules

    version = metadata.version("lowrank_core")
    assert version == lowrank_core.__version__ == _core.build_info()["version"], version
    cuda = _core.build_info()["cuda"]
    assert (cuda is not None) == (sys.argv[1] == "cuda"), cuda
    shipped = resources.files("lowrank_core")
    assert all(shipped.joinpath(name).is_file() for name in ("py.typed", "_core.pyi"))
    assert any(file.name == "LICENSE" for file in metadata.files("lowrank_core") or ())

    # A matrix of rank 20: what is left is rounding, n roundings of the largest value at most.
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 20)) @ rng.standard_normal((20, 200))
    for dtype in (np.float32, np.float64):
        matrix = a.astype(dtype)
        for level in _core.isa_levels():
            _core.set_isa(level)
            u, s, vh = lowrank_core.rsvd(matrix, 20)
            error = np.linalg.norm(matrix - (u * s) @ vh) / np.linalg.norm(matrix)
            assert error < 200 * np.finfo(dtype).eps, (level, dtype, error)
    print(f"lowrank_core {version}: CUDA {cuda}, levels {', '.join(_core.isa_levels())}: works")


if __name__ == "__main__":
    main()
