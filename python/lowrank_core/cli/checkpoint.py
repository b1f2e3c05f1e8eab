"""Checkpoints of a run: trees of tensors and plain numbers, each in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import writing
from lowrank_core.tree_file import UnreadableError, read_tree, write_tree

FORMAT = "lowrank_core.train"
VERSION = "1"
_REMEDY = "put a good copy in its place, or delete it to train this optimizer from the start with `--resume`"


def save(path: Path, tree: dict[str, Any]) -> None:
    """Writes `tree` atomically; see `write_tree`.

    Raises:
      CliError: the disk refused; the previous checkpoint is intact.
    """
    with writing(path):
        write_tree(path, tree, FORMAT, VERSION)


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote; see `read_tree`.

    Raises:
      CliError: the file is unreadable, damaged, or not ours.
    """
    try:
        return read_tree(path, FORMAT, VERSION)
    except UnreadableError as failure:
        raise CliError(f"the checkpoint '{path}' {failure}; {_REMEDY}") from failure
