"""One run of the comparison: all that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Trial:
    """`method`: see `learn.CLASSES`; `options`: its own; `start`: of the factors."""

    task: str
    batch: int
    seed: int
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None

    @cached_property
    def name(self) -> str:
        """Of its file."""
        short = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        plain = "-".join(
            filter(None, (self.method, self.start, self.task, f"b{self.batch}", f"seed{self.seed}", short))
        )
        return plain.replace(", ", "-").replace(" ", "-")
