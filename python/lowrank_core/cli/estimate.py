"""`lowrank-core estimate`: bytes of weights, gradients and optimizer state before you run."""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import replace
from math import prod
from typing import Any

from lowrank_core.cli.config import TrainConfig, resolve
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag
from lowrank_core.cli.presets import DTYPES, PRESETS, Parts, Shapes, Sizes
from lowrank_core.cli.table import megabytes, table
from lowrank_core.extras import how_to_install

BYTE_VALUES = 256
MAX_MATRIX = 2**60  # elements: more would overflow what bytes are counted in


def run(options: argparse.Namespace) -> int:
    """Prints the table, or the same as JSON."""
    if importlib.util.find_spec("torch") is None:
        raise CliError(f"needs torch; {how_to_install('torch')}")
    parts, width = _parts(options)
    result = estimate(parts, options.optimizer, _rank(options, parts, width), options.proj_type, options.dtype)
    print(json.dumps(result, indent=1) if options.json else _text(result))
    return 0


def estimate(parts: Parts, optimizer: str, rank: int | None, proj_type: str | None, dtype: str) -> dict[str, Any]:
    """Bytes for AdamW and, if it is another, for `optimizer`; `dtype` is a key of `DTYPES`.

    Raises:
      CliError: a matrix is too large to be counted.
    """
    import torch

    _check_sizes(parts)
    kind: torch.dtype = getattr(torch, DTYPES[dtype])
    parameters = sum(count * sum(map(prod, shapes.values())) for shapes, count in parts)
    weights = parameters * kind.itemsize
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(("adamw", optimizer)):
        keys: dict[str, Any] = {} if name == "adamw" else {"rank": rank, "proj_type": proj_type or "std"}
        state = _state_bytes(parts, optimizer=name, dtype=kind, **keys)
        rows.append(
            {
                "optimizer": name,
                "weights": weights,
                "gradients": weights,
                "state": state,
                "total": 2 * weights + state,
            }
        )
    return {"parameters": parameters, "dtype": dtype, "rank": rank, "bytes": rows}


def decoder(dim: int, ffn: int, layers: int) -> Parts:
    """The decoder that `train` trains."""
    return Sizes(dim, ffn, layers, BYTE_VALUES).parts()


def _state_bytes(parts: Parts, **keys: Any) -> int:
    """The state is a sum over parameters, so that a thousand layers cost what two do."""
    from lowrank_core.optim import estimate_state_bytes

    once: Shapes = {f"{i}.{name}": shape for i, (shapes, _) in enumerate(parts) for name, shape in shapes.items()}
    total = base = estimate_state_bytes(once, **keys)
    for shapes, count in parts:
        if count > 1:
            again: Shapes = {f"again.{name}": shape for name, shape in shapes.items()}
            total += (count - 1) * (estimate_state_bytes({**once, **again}, **keys) - base)
    return total


def _check_sizes(parts: Parts) -> None:
    for name, shape in ((name, shape) for shapes, _ in parts for name, shape in shapes.items()):
        if prod(shape) > MAX_MATRIX:
            raise CliError(
                f"a matrix must hold at most 2^60 numbers, got {' x '.join(map(str, shape))} ({name}); "
                "lower `--shape`, `--dim` or `--ffn`"
            )


def _parts(options: argparse.Namespace) -> tuple[Parts, int]:
    """The parameters' shapes, and the width that the default rank is a quarter of."""
    own = {name: getattr(options, name) for name in ("dim", "layers", "ffn") if hasattr(options, name)}
    if own and (options.preset or options.shape):
        other = "--preset" if options.preset else "--shape"
        raise CliError(f"`{flag(next(iter(own)))}` must not come with `{other}`, which says all sizes; leave one out")
    if options.shape:
        given: list[tuple[int, int, int]] = options.shape
        return [({"shape": (m, n)}, count) for m, n, count in given], min(min(m, n) for m, n, _ in given)
    if options.preset:
        return PRESETS[options.preset].parts(), PRESETS[options.preset].dim
    config = resolve(replace(TrainConfig(), optimizer="adamw", **{"heads": 1, **own}))
    return decoder(config.dim, config.ffn or 0, config.layers), config.dim


def _rank(options: argparse.Namespace, parts: Parts, width: int) -> int | None:
    if options.optimizer == "adamw":
        for name in ("rank", "proj_type"):
            if getattr(options, name) is not None:
                raise CliError(f"`{flag(name)}` must come with the optimizer galore, got adamw; leave it out")
        return None
    rank: int = options.rank or max(1, width // 4)
    largest = max(min(shape) for shapes, _ in parts for shape in shapes.values() if len(shape) == 2)
    if rank >= largest:
        raise CliError(f"`--rank` must be < {largest}, the largest min(m, n) of a matrix, got {rank}; lower it")
    return rank


def _text(result: dict[str, Any]) -> str:
    rows = result["bytes"]
    base = rows[0]["state"]
    cells = [
        (
            row["optimizer"],
            *(megabytes(row[k]) for k in ("weights", "gradients", "state", "total")),
            f"{row['state'] / base:.3f}",
        )
        for row in rows
    ]
    rank = f", rank {result['rank']}" if result["rank"] else ""
    head = ("optimizer", "weights", "gradients", "optimizer state", "total", "state of AdamW's")
    size = f"{result['parameters']:,} parameters, {result['dtype']}{rank}"
    notes = ["Activations are not counted."]
    if result["dtype"] != "fp32" and len(rows) > 1:
        notes.append(f"On an accelerator {rows[1]['optimizer']} keeps moments in float32 in this version.")
    return f"{size}\n\n{table(head, cells)}\n\n{' '.join(notes)}"
