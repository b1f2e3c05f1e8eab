"""What the families declare of their operators, without torch.

A family's modules call `declare`; `torch_registry` reads `DECLARED` and imports only the families that are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMESPACE = "lowrank_core"


@dataclass(frozen=True)
class Op:
    """One operator: `torch.ops.lowrank_core.<name>` for tensors, `run` for the arrays of other libraries.

    Each function below takes all arguments of the schema, the optional ones too. `check` raises for arguments that do
    not fit. It is called before torch compares them with the schema, because torch's errors have other words, and again
    by `run`. `outputs` allocates what the operator returns, from shapes and dtypes alone; with `check` before it, it is
    the fake kernel. `kernel(out, ...)` fills that; with `fills=False`, `kernel(...)` checks and makes the result
    itself.

    `leading` are the arguments that take leading dimensions, all the same ones: torch.vmap calls the operator once if
    nothing else is mapped, otherwise once for each member. Derivatives need torch: they are in the family's
    `autograd.RULES`.
    """

    schema: str
    check: Callable[..., Any]
    outputs: Callable[..., Any]
    kernel: Callable[..., Any]
    fills: bool = True
    leading: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def mutates(self) -> bool:
        """Whether it writes to an argument; its schema marks that by a `!`."""
        return "!" in self.schema

    def fake(self, *args: Any, **options: Any) -> Any:
        """Checks and allocates."""
        self.check(*args, **options)
        return self.outputs(*args, **options)

    def run(self, *args: Any, **options: Any) -> Any:
        """Checks, allocates and computes."""
        if not self.fills:
            return self.kernel(*args, **options)
        out = self.fake(*args, **options)
        self.kernel(out, *args, **options)
        return out


def unchecked(*args: Any, **options: Any) -> None:
    """The check of an operator that only derivatives call, with arguments that another operator has checked."""


DECLARED: dict[str, list[Op]] = {}
"""The operators of every family, by its stem."""


def declare(family: str, *operators: Op) -> None:
    """Adds operators to those that are registered when the first tensor arrives."""
    DECLARED.setdefault(family, []).extend(operators)
