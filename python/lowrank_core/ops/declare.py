"""What the families declare of their torch operators, without torch.

A family's modules call `declare`; `torch_registry` reads `DECLARED` and imports no family of its own accord.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMESPACE = "lowrank_core"


@dataclass(frozen=True)
class Op:
    """One operator `torch.ops.lowrank_core.<name>`.

    `run` computes, `fake` only checks and allocates; both call the family's one check. What autograd does with it is
    in the family's `autograd.RULES`, which needs torch.

    `leading` are the arguments that take leading dimensions, all the same ones: torch.vmap calls the operator once
    where nothing else is mapped, and once for each member elsewhere.
    """

    schema: str
    run: Callable[..., Any]
    fake: Callable[..., Any]
    leading: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def mutates(self) -> bool:
        """Whether it writes to an argument, which its schema says by a `!`."""
        return "!" in self.schema


DECLARED: dict[str, list[Op]] = {}
"""The operators of every family, by its stem."""


def declare(family: str, *operators: Op) -> None:
    """Adds operators to those that are registered when the first tensor arrives."""
    DECLARED.setdefault(family, []).extend(operators)
