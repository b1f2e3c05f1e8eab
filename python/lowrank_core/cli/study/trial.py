"""One run of the comparison: all that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Trial:
    """All that decides a run: `options` of `lowrank-core train`, `keys` of the class, or a `foreign` class."""

    size: str
    seed: int
    options: Mapping[str, Any]
    keys: Mapping[str, Any] = field(default_factory=dict)
    foreign: str | None = None

    @property
    def optimizer(self) -> str:
        """As `lowrank-core train` knows it."""
        return str(self.options["optimizer"])

    def to_json(self) -> dict[str, Any]:
        """The fields, for a run file."""
        return {
            "size": self.size, "seed": self.seed, "foreign": self.foreign, "options": dict(self.options),
            "keys": dict(self.keys),
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trial:
        """The inverse; a whole run file will do."""
        return cls(**{item.name: record[item.name] for item in fields(cls)})

    @cached_property
    def name(self) -> str:
        """Of its file: what a reader looks for, then a digest of everything."""
        identity = json.dumps([self.seed, self.foreign, self.options, self.keys], sort_keys=True, default=dict)
        short = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return f"{self.foreign or self.optimizer}-{self.size}-seed{self.seed}-{short}"
