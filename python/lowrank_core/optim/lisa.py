"""LISA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from lowrank_core.checks import is_count, require, require_choice
from lowrank_core.optim.parts.selectors import selected
from lowrank_core.optim.stacks import find_stack, parameters_of

_SETTINGS = ("active", "period", "seed", "policy")


class LISA(torch.optim.Optimizer):
    """Trains a few layers of a stack at a time, others in each period, and all that is outside of the stack always.

    Of the layers 0 to L - 1 exactly `active` are trained, drawn without replacement by seed and number of the period;
    the others are frozen (`requires_grad` is False, `grad` is None). A period has `period` steps; the draw for the next
    one comes at the end of the last step of a period, before the next forward pass. State: that of the optimizer, for
    what is trained.

    It is a facade over any optimizer, which must have been made before, while every layer was trainable: groups, state
    and whatever else is asked for are the optimizer's. Parameters that were frozen when it was made stay frozen, and
    those that a layer shares with something outside of the stack are always trained.

    Args:
      optimizer: over all parameters of the stack, such as torch.optim.AdamW or one of this package.
      model: the module that has the layers.
      layers: the stack: the name of a module in `model`, or modules; None: the longest `nn.ModuleList` or
        `nn.Sequential` whose modules are of one class.
      active: how many layers are trained at a time, from 1 to L.
      period: >= 1, steps from one draw to the next.
      state: "drop": the state of a layer that is frozen is deleted, and starts anew when it is drawn again; "keep": it
        stays, and grows to that of all layers.
      seed: any int.

    Raises:
      TypeError: `model` is no module, or `optimizer` no optimizer.
      ValueError: a value out of its range, no stack is found, or the optimizer does not have a layer's parameters.

    Determinism: that of the optimizer; the draws are D0 (same on every device and level; docs/numerics.md).
    Source: Pan et al. 2024 (arXiv:2403.17919), algorithm 1, with as many layers in every period, as in the authors'
      code, which keeps states; "drop" is what their experiments did by starting the optimizer anew.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import LISA
      >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(6)))
      >>> optimizer = LISA(torch.optim.AdamW(model.parameters()), model, active=2, period=3)
      >>> model(torch.ones(4, 8)).square().mean().backward()
      >>> optimizer.step()
      >>> len(optimizer.state)  # a weight and a bias of each
      4
    """

    _step_supports_amp_scaling: ClassVar[bool] = False  # a scaler is to unscale before, whatever the optimizer can do

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        layers: str | Iterable[nn.Module] | None = None,
        active: int = 2,
        period: int = 20,
        state: str = "drop",
        seed: int = 0,
    ) -> None:
        op = type(self).__name__
        for name, value, kind in (("optimizer", optimizer, torch.optim.Optimizer), ("model", model, nn.Module)):
            if not isinstance(value, kind):
                raise TypeError(f"{op}: `{name}` must be a {kind.__name__}, got {type(value).__name__}")
        stack = find_stack(op, model, layers)
        require(is_count(active, 1) and active <= len(stack), op, "active", f"be an int from 1 to {len(stack)}", active)
        require(is_count(period, 1), op, "period", "be an int >= 1", period)
        require_choice(op, "state", state, ("drop", "keep"))
        require(is_count(seed, -(2**63)), op, "seed", "be an int >= -2**63", seed)
        self.optimizer, self.active, self.period, self.policy, self.seed = optimizer, active, period, state, seed
        self.steps = 0
        self._layers = parameters_of(op, model, stack, optimizer.param_groups)
        plain = "differentiable" not in optimizer.defaults
        super().__setstate__({})  # torch's hooks, for this object; groups and state stay the optimizer's
        if plain:
            optimizer.defaults.pop("differentiable", None)
        self._freeze()

    @property
    def trained(self) -> list[int]:
        """The numbers of the layers that are trained now, in ascending order."""
        return sorted(selected(self.seed, self.steps // self.period, len(self._layers), self.active))

    # torch's own class annotates these three as attributes; here they are the optimizer's, whatever it makes of them.
    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    # Whose gradients are there changes with the period, and torch's optimizers would be compiled anew for each set.
    @_disable_dynamo
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """The optimizer's step. After the last one of a period other layers are trained."""
        result = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.steps += 1
        if self.steps % self.period == 0:
            self._freeze()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters that are always trained, unless they are frozen."""
        self.optimizer.add_param_group(param_group)

    def unfreeze(self) -> None:
        """Every layer is trainable again, as before; the next draw freezes anew."""
        for param in self._every():
            param.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, with the settings and the count of steps under "lisa": tensors and plain numbers."""
        own = {key: getattr(self, key) for key in (*_SETTINGS, "steps")}
        return {**self.optimizer.state_dict(), "lisa": {**own, "layers": len(self._layers)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over settings, steps, groups and state, and trains the layers that were trained.

        Raises:
          ValueError: it is of another optimizer, or of a stack with another number of layers; nothing is changed.
        """
        own = state_dict.get("lisa")
        if not isinstance(own, dict) or own.keys() != {*_SETTINGS, "steps", "layers"}:
            raise ValueError("load_state_dict: `state_dict` must be what LISA.state_dict() returned, got no such dict")
        if own["layers"] != len(self._layers):
            raise ValueError(
                f"load_state_dict: `state_dict` must be of a stack of {len(self._layers)} layers, got {own['layers']}"
            )
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != "lisa"})
        for key in (*_SETTINGS, "steps"):
            setattr(self, key, own[key])
        self._freeze()

    def _freeze(self) -> None:
        """Trains the layers of this period and no others."""
        chosen = {param for number in self.trained for param in self._layers[number]}
        for param in self._every():
            param.requires_grad_(param in chosen)
            if param not in chosen:
                param.grad = None
                if self.policy == "drop":
                    self.optimizer.state.pop(param, None)

    def _every(self) -> list[Tensor]:
        return list(dict.fromkeys(param for layer in self._layers for param in layer))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "optimizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["optimizer"], name)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={getattr(self, key)!r}" for key in _SETTINGS)
        return f"{type(self).__name__}({settings}, trained={self.trained})\n{cast(Sequence[Any], self.optimizer)!r}"
