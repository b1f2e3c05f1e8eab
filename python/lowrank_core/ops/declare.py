"""How a family declares its torch operators without importing torch.

A family lists `Op`s; `torch_ops()` registers those of all families, once, when the first tensor arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMESPACE = "lowrank_core"


@dataclass(frozen=True)
class Op:
    """One operator `torch.ops.lowrank_core.<name>`.

    `run` computes, `fake` only checks and allocates; both call the family's one check. A function of a module
    that needs torch is named "module:function" and imported when the operator is registered. An operator without
    `backward` is declared not differentiable; one that `mutates` its arguments belongs under
    no_grad.
    """

    schema: str
    run: Callable[..., Any] | str
    fake: Callable[..., Any] | str
    backward: str | None = None
    setup_context: str | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def mutates(self) -> bool:
        """Whether it writes to an argument, which its schema says by a `!`."""
        return "!" in self.schema


def torch_ops() -> Any:
    """`torch.ops.lowrank_core`, with every operator registered."""
    from lowrank_core.ops import torch_registry

    return torch_registry.ops
