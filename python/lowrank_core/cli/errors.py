"""The one exception of the command line: a sentence for the user, exit code 2, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CliError(Exception):
    """Its text is one complete sentence: what was wrong, what was got, what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into a sentence."""
    try:
        yield
    except OSError as failure:
        raise CliError(
            f"cannot write '{path}' ({failure.strerror}); the last checkpoint is intact: "
            "make room or fix the permission, then continue with `--resume`"
        ) from failure
