"""The command line `lowrank-core` (= `python -m lowrank_core`).

A command's module is imported when it runs: `--help` and `info` need neither torch nor its start-up time.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 (done), 2 (refused with a sentence) or 130, 143 (stopped by a signal)."""
    options = build_parser().parse_args(argv)
    try:
        command = importlib.import_module(f"lowrank_core.cli.{options.command}")
        return int(command.run(options))
    except KeyboardInterrupt:
        print(f"lowrank-core {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); the interpreter would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (CliError, OSError) as refusal:
        print(f"lowrank-core {options.command}: {refusal}", file=sys.stderr)
        return 2
