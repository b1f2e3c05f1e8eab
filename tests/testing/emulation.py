"""Puts the extension whose GPU is emulated in the place of the other one, before the package is imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

CORE, FOLDER = "lowrank_core._core", "LOWRANK_CORE_EMULATED"


def loaded(name: str, folder: Path) -> ModuleType:
    """The compiled module in `folder`, as the module `name`."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    spec = importlib.util.spec_from_file_location(name, folder / f"_core{suffix}")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emulate() -> None:
    """From now on `lowrank_core._core` is the extension in the folder that the environment names, if it names one."""
    if folder := os.environ.get(FOLDER):
        assert "lowrank_core" not in sys.modules, "the package has another extension already"
        sys.modules[CORE] = loaded(CORE, Path(folder))


def host() -> ModuleType:
    """The other extension, of the same build."""
    return loaded("host._core", Path(os.environ[FOLDER]).parent)
