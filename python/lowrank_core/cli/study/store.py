"""The run files: each run once, written whole, read again while nothing that decides its numbers has changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.environment import environment, version
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import reading, write_atomic
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.study.sizes import SIZES
from lowrank_core.cli.study.sources import PACKAGE, digest_of
from lowrank_core.cli.study.trial import Trial

COMMAND = "lowrank-core train --optimizer all"
# The distribution of each foreign optimizer, whose version decides numbers.
_DISTRIBUTIONS = {"galore_torch": "galore-torch", "bitsandbytes": "bitsandbytes"}
Record = dict[str, Any]
Facts = dict[str, Any]
Decided = Callable[[Trial], Facts]
_NEEDED = (
    "size", "seed", "foreign", "options", "keys", "decided_by", "val_loss", "state_bytes", "val_curve", "losses_sha256",
)  # fmt: skip
_REMEDY = "delete it, and the run is made again"


class Store:
    """The runs in `folder`: those that today's sources would make again, or, with `past`, all.

    What is read is kept; what another process writes is found after `forget`.
    """

    def __init__(self, folder: Path, *, past: bool = False) -> None:
        self.folder = folder
        self._past = past
        self._read: dict[str, Record | None] = {}

    def find(self, trial: Trial) -> Record | None:
        """The run's record; None if there is none, or it was made by other sources, versions or text.

        Raises:
          CliError: the file is damaged.
        """
        if trial.name not in self._read:
            path = self.path(trial)
            record = load(path) if path.exists() else None
            stands = record is not None and (self._past or record["decided_by"] == decided_by(trial))
            self._read[trial.name] = record if stands else None
        return self._read[trial.name]

    def records(self) -> Iterator[Record]:
        """All of the folder, by name.

        Raises:
          CliError: a file is damaged.
        """
        paths = (path for size in SIZES for path in self.folder.glob(f"*-{size}*-seed*.json"))
        yield from (load(path) for path in sorted(paths))

    def forget(self, trial: Trial) -> None:
        """Reads the trial's file again the next time."""
        self._read.pop(trial.name, None)

    def write(self, trial: Trial, record: Record) -> None:
        """Writes the run's file, whole or not at all."""
        write_atomic(self.path(trial), (json.dumps(record) + "\n").encode())
        self.forget(trial)

    def path(self, trial: Trial) -> Path:
        """Where the run's file is."""
        return self.folder / f"{trial.name}.json"


def load(path: Path) -> Record:
    """The record in a run file.

    Raises:
      CliError: the file is damaged.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        record: Record = json.loads(data)
        lacking = [key for key in _NEEDED if key not in record]
    except (ValueError, TypeError, RecursionError) as failure:
        raise CliError(f"the run file '{path}' is damaged ({failure}); {_REMEDY}") from failure
    if lacking or not isinstance(record, dict):
        raise CliError(f"the run file '{path}' is damaged ({(lacking or ['all'])[0]} is missing); {_REMEDY}")
    return record


def record_of(trial: Trial, decided: Facts, result: Record) -> Record:
    """What a run file holds: what was asked, where and with what it was made, and what came out."""
    return {**trial.to_json(), "decided_by": decided, **origin(), "threads": 1, **result}


def decided_by(trial: Trial) -> Facts:
    """Besides the options that it was given, all that decides the run's numbers on one kind of processor."""
    config = resolve(TrainConfig.from_json(dict(trial.options)))
    facts: Facts = {
        "sources": digest_of(trial.optimizer, trial.foreign), "text": text_digest(), "torch": version("torch"),
        "numpy": version("numpy"), "own": json.loads(json.dumps(config.own(trial.optimizer))),
    }  # fmt: skip
    if trial.foreign is not None:
        facts[trial.foreign] = version(_DISTRIBUTIONS[trial.foreign])
    return facts


@cache
def origin() -> dict[str, Any]:
    """Command, commit, whether sources differ from it, versions, machine and date."""
    commit, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "python", "cpp")
    return {"command": COMMAND, "commit": commit, "dirty": None if dirty is None else bool(dirty), **environment()}


@cache
def text_digest() -> str:
    """SHA-256 of the text that all train on: the standard library of this Python."""
    from lowrank_core.cli.text import load_corpus

    return load_corpus((), val_fraction=0.1, window=2).sha256


def _git(*arguments: str) -> str | None:
    """What git prints in the source tree; None outside of one."""
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None
