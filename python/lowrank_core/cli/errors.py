"""The one exception of the command line: a sentence for the user, exit code 2, no traceback."""

from __future__ import annotations


class CliError(Exception):
    """Its text is one complete sentence: what was wrong, what was got, what to do."""
