"""`lowrank-core finetune`: an adapter of a pretrained model from a local folder."""

from __future__ import annotations

import argparse
import importlib


def run(options: argparse.Namespace) -> int:
    """Runs `command`, which reads the options' limits from the parser; the parser reads `config` from here."""
    return int(importlib.import_module(f"{__name__}.command").run(options))
