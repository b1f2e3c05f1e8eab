"""How a family declares its torch operators without importing torch.

A family lists `Op`s; `torch_ops()` registers those of all families, once, when the first tensor arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_core.ops.arrays import is_torch

NAMESPACE = "lowrank_core"
MULTILINEAR = "lowrank_core.ops.torch_autograd:multilinear"  # forward mode of what is linear in each argument


@dataclass(frozen=True)
class Op:
    """One operator `torch.ops.lowrank_core.<name>`.

    `run` computes, `fake` only checks and allocates; both call the family's one check. A function of a module
    that needs torch is named "module:function" and imported when the operator is registered.

    An operator without `backward` has no derivative in reverse mode, one without `forward` none in forward mode, and
    says so. `constants` are arguments that have none in an operator that has one otherwise. One that `mutates` its
    arguments has none at all. `leading` are the arguments that take leading dimensions, all the same ones: torch.vmap
    calls the operator once where nothing else is mapped, and once for each member elsewhere. `mapped`, a function,
    decides in its place.
    """

    schema: str
    run: Callable[..., Any] | str
    fake: Callable[..., Any] | str
    backward: str | None = None
    setup_context: str | None = None
    forward: str | None = None
    constants: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    mapped: str | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def mutates(self) -> bool:
        """Whether it writes to an argument, which its schema says by a `!`."""
        return "!" in self.schema


def without_derivative(op: str, arrays: Sequence[Any], compute: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """`compute()` of a plain function, which says that it has no derivative where torch asks for one."""
    given = [a for a in arrays if is_torch(a)]
    if not given:
        return compute()
    from lowrank_core.ops import torch_autograd

    return torch_autograd.call_constant(op, given, compute)


def torch_ops() -> Any:
    """`torch.ops.lowrank_core`, with every operator registered."""
    from lowrank_core.ops import torch_registry

    return torch_registry.ops
