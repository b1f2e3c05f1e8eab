"""The command line `lowrank-core` (= `python -m lowrank_core`).

A command's module is imported when it runs: `--help` and `info` need neither torch nor its start-up time.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.parser import build_parser, parse
from lowrank_core.cli.waiting import start_over_passive

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 (done), 2 (refused with a sentence), 141 (nobody reads the output any more), or
    129, 130, 143 (stopped by a signal).

    `argv` None means those of the process, which a command that trains then replaces by itself once (`waiting`).
    """
    _prepare_streams()
    where = "lowrank-core"
    try:
        try:
            options = parse(argv)
            where += f" {options.command}"
            if argv is None and options.command in ("train", "finetune"):
                start_over_passive()
            command = importlib.import_module(f"lowrank_core.cli.{options.command}")
            return int(command.run(options))
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except KeyboardInterrupt:
        return _end(130, f"{where}: interrupted")
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        return _end(141)
    except CliError as refusal:
        return _end(2, f"{where}: {refusal}")
    except OSError as failure:
        what = "standard output" if failure.filename is None else f"'{failure.filename}'"
        return _end(2, f"{where}: cannot use {what} ({failure.strerror}); make room or fix the permission")
    except MemoryError:
        return _end(2, f"{where}: out of memory; free some, or ask for less")


def _prepare_streams() -> None:
    """Makes the three standard streams safe to use: open, and able to show any path."""
    with suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed by the parent: a file would take its number
            pass
        os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (stays open as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(code: int, sentence: str = "") -> int:
    """Prints `sentence`, if any, to stderr. A stream that cannot be written is replaced, or Python would complain."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, sentence and f"{sentence}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return code
