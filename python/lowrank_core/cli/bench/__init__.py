"""`lowrank-core bench`: measures this installation on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util

from lowrank_core.cli.errors import CliError
from lowrank_core.extras import how_to_install

_PACKAGES = ("torch", "tqdm")


def run(options: argparse.Namespace) -> int:
    """Runs the measurement that `options` names; its module, which needs torch, is imported for it."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise CliError(f"needs {', '.join(missing)}; {how_to_install('train')}")
    return int(importlib.import_module(f"lowrank_core.cli.bench.{options.what}").run(options))
