"""A tree of tensors and plain values in one safetensors file, with a checksum, without pickle.

The tensors are stored under their path in the tree; the tree itself, with a mark in each tensor's place, is JSON
in the file's metadata. The SHA-256 over both finds a flipped bit anywhere (safetensors checks no data).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from lowrank_core.atomic import write_atomic

_COPIES = 3  # of all tensors, that safetensors makes on the way to the file's bytes


class UnreadableError(ValueError):
    """A file that is damaged, or of another kind. Its text follows the name of the file in a sentence."""


def write_tree(path: Path, tree: dict[str, Any], kind: str, version: str) -> None:
    """Writes `tree` (dicts, lists, tuples, tensors, numbers, strings, booleans, None) atomically.

    Raises:
      OSError: the disk refused; what `path` held is intact.
      TypeError: a leaf is something else.
      RuntimeError: torch's, for want of memory.
    """
    tensors: dict[str, Tensor] = {}
    body = json.dumps(_encode(tree, "", tensors))
    metadata = {"format": kind, "version": version, "tree": body, "sha256": _digest(body, tensors)}
    # safetensors ends the process when it gets no memory: torch, which raises, is asked for as much beforehand.
    torch.empty(_COPIES * sum(tensor.nbytes for tensor in tensors.values()), dtype=torch.uint8)
    write_atomic(path, to_bytes(tensors, metadata))


def read_tree(path: Path, kind: str, version: str) -> dict[str, Any]:
    """Reads what `write_tree` wrote: same keys, dtypes and bits. Tensors own their memory.

    Raises:
      UnreadableError: the file is unreadable, damaged, or of another kind or version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned: a view of the mapped file may be unaligned, and some kernels round differently there.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as failure:
        raise UnreadableError(f"cannot be read ({failure})") from failure
    except (SafetensorError, ValueError) as failure:
        raise UnreadableError(f"is damaged ({failure})") from failure
    if metadata.get("format") != kind or metadata.get("version") != version:
        found = f"{metadata.get('format', 'no format')}, version {metadata.get('version', 'none')}"
        raise UnreadableError(f"must be of format {kind}, version {version}, got {found}")
    if metadata.get("sha256") != _digest(metadata.get("tree", ""), tensors):
        raise UnreadableError("is damaged (its checksum does not match)")
    tree: dict[str, Any] = _decode(json.loads(metadata["tree"]), tensors)
    return tree


def _digest(body: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(body.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _encode(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `node`; its tensors go to `tensors`. A dict becomes pairs: JSON would make integer keys text."""
    if isinstance(node, Tensor):
        tensors[path] = node.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(node, dict):
        return {"dict": [[key, _encode(value, f"{path}.{key}".lstrip("."), tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_encode(value, f"{path}.{i}", tensors) for i, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"write_tree: `{path}` must be a tensor or a plain value, got {type(node).__name__}")


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, body),) = node.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "dict":
        return {key: _decode(value, tensors) for key, value in body}
    items = [_decode(value, tensors) for value in body]
    return tuple(items) if kind == "tuple" else items
