"""The state of an optimizer as a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lowrank_core.extras import how_to_install
from lowrank_core.optim.base import StateOptimizer
from lowrank_core.optim.lisa import LISA

_KIND, _VERSION = "lowrank_core.optimizer", "1"

StateFile = str | os.PathLike[str]


def save_state(optimizer: StateOptimizer | LISA, path: StateFile) -> None:
    """Writes `optimizer.state_dict()` as one safetensors file: no pickle, a checksum over all of it, all or nothing.

    Tensors keep their dtypes and bits; groups and plain numbers stand in the header. The weights are not in it: they
    belong to the model.

    Args:
      optimizer: of this package.
      path: of the file; one that is there is replaced, at once and only if the new one is whole.

    Raises:
      OSError: the file cannot be written; one that was there is intact.
      TypeError: `optimizer` is none of this package, or a group holds a value that is no number, text, tensor or list
        of them.
      ModuleNotFoundError: safetensors is not installed.

    Example:
      >>> import pathlib, tempfile, torch
      >>> from lowrank_core.optim import GaLoreAdamW, load_state, save_state
      >>> one, other = (GaLoreAdamW([torch.zeros(8, 6)], rank=2, lr=lr) for lr in (0.01, 0.02))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_state(one, pathlib.Path(folder, "optimizer.safetensors"))
      ...     load_state(other, pathlib.Path(folder, "optimizer.safetensors"))
      >>> other.state_dict() == one.state_dict()
      True
    """
    _check_optimizer("save_state", optimizer)
    tree = {"optimizer": type(optimizer).__name__, "state_dict": optimizer.state_dict()}
    _tree_file().write_tree(Path(path), tree, _KIND, _VERSION)


def load_state(optimizer: StateOptimizer | LISA, path: StateFile) -> None:
    """Takes over what `save_state` wrote; the next step is then the same to the bit.

    Args:
      optimizer: of the class, the groups and the parameters that the file was written from.
      path: of the file.

    Raises:
      TypeError: `optimizer` is none of this package.
      ValueError: the file is missing, damaged or no such file, or it is of another optimizer, of other groups or of
        parameters with other names or shapes. Nothing is changed then.
      ModuleNotFoundError: safetensors is not installed.

    Example:
      >>> import pathlib, tempfile, torch
      >>> from lowrank_core.optim import GaLoreAdamW, load_state
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     load_state(GaLoreAdamW([torch.zeros(8, 6)], rank=2), pathlib.Path(folder, "state"))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: load_state: the file ... cannot be read (No such file or directory: ...); nothing was changed
    """
    _check_optimizer("load_state", optimizer)
    files = _tree_file()
    try:
        tree = files.read_tree(Path(path), _KIND, _VERSION)
    except files.UnreadableError as failure:
        raise ValueError(f"load_state: the file '{path}' {failure}; nothing was changed") from failure
    kind = type(optimizer).__name__
    if tree["optimizer"] != kind:
        raise ValueError(
            f"load_state: the file '{path}' must be of {kind}, got one of {tree['optimizer']}; nothing was changed"
        )
    saved = tree["state_dict"]
    _check_names(optimizer, saved["param_groups"])
    optimizer.load_state_dict(saved)


def _check_optimizer(op: str, optimizer: object) -> None:
    """Raises TypeError for what is no optimizer of this package."""
    if not isinstance(optimizer, (StateOptimizer, LISA)):
        raise TypeError(
            f"{op}: `optimizer` must be one of lowrank_core, got {type(optimizer).__name__}; "
            "save the state_dict() of others with torch.save"
        )


def _check_names(optimizer: StateOptimizer | LISA, groups: list[dict[str, Any]]) -> None:
    """Raises ValueError if both sides have names and these differ; by position alone a state fits any like shape."""
    for number, (own, saved) in enumerate(zip(optimizer.param_groups, groups, strict=False)):
        for mine, theirs in zip(own.get("param_names") or (), saved.get("param_names") or (), strict=False):
            if mine != theirs:
                raise ValueError(
                    f"load_state: a parameter of group {number} must be `{theirs}` as saved, got `{mine}`; "
                    "give the optimizer its parameters in the order of then"
                )


def _tree_file() -> Any:
    try:
        from lowrank_core import tree_file
    except ModuleNotFoundError as missing:
        if missing.name != "safetensors":
            raise
        sentence = f"save_state, load_state: need safetensors, which is not installed; {how_to_install('train')}"
        raise ModuleNotFoundError(sentence, name="safetensors") from None
    return tree_file
