"""Memory: what a run holds at least, what this process can have, and the sentences where that is too little."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import takers
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.estimate import OWNED, STORED, decoder, estimate
from lowrank_core.cli.subjects import Listed
from lowrank_core.cli.table import megabytes
from lowrank_core.memory.methods import FACADES, METHODS

_INDEX_BYTES = 8  # a window's byte as a token


def check_fits(config: TrainConfig) -> None:
    """Refuses a run that cannot fit even where nothing else runs; activations and the text are not counted.

    Raises:
      CliError: with the estimate's number.
    """
    limit = limit_bytes()
    for name in config.runs:
        held = held_bytes(config, name)
        if held > limit:
            raise CliError(
                f"weights, gradients and optimizer state of {name} take {megabytes(held)} (`lowrank-core estimate`), "
                f"more than the {megabytes(limit)} that this process can have; lower `--dim`, `--layers` or `--ffn`"
            )
    for option, windows in (
        ("batch-size` or `--accumulation", config.batch_size * config.accumulation),
        ("eval-batches` or `--batch-size", config.batch_size * config.eval_batches),
    ):
        if (needed := windows * config.window * _INDEX_BYTES) > limit:
            raise CliError(
                f"{windows} windows of {config.window} bytes take {megabytes(needed)}, more than the "
                f"{megabytes(limit)} that this process can have; lower `--{option}`"
            )


def held_bytes(config: TrainConfig, name: str) -> int:
    """Bytes of weights, gradients and optimizer state of one of the run's optimizers."""
    dtype = "bf16" if config.precision == "bf16" else "fp32"
    parts = decoder(config.dim, config.ffn or 0, config.layers)
    own = {"rank": config.rank_of(name) if name in takers("rank") else None, **config.own(name)}
    deciding = METHODS[name].deciding if name in METHODS else tuple(OWNED) if name in FACADES else ()
    keys = {key: own[key] for key in ("rank", *STORED, *deciding) if own.get(key) is not None}
    asked = {} if name == "adamw" else {name: keys}
    return int(estimate(Listed(parts, config.dim), asked, dtype)["bytes"][-1]["total"])


def limit_bytes() -> int:
    """The most that this process can ever have: memory and swap of the machine, or a limit of container or shell."""
    limits = [_machine(), *_groups()]
    limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min(value for value in limits if value > 0)  # RLIM_INFINITY is negative


@contextmanager
def watched(config: TrainConfig, name: str) -> Iterator[None]:
    """Turns a failed allocation while `name` trains into a sentence with the estimate's number."""
    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise CliError(
            f"out of memory with {name}: weights, gradients and optimizer state take "
            f"{megabytes(held_bytes(config, name))} (`lowrank-core estimate`), activations and the text come on top; "
            "lower `--batch-size` (raise `--accumulation` instead), `--seq-len`, `--dim` or `--layers`, "
            "or free memory and go on with `--resume`"
        ) from failure


def is_out_of_memory(failure: BaseException) -> bool:
    """torch's allocator has no exception of its own on the CPU."""
    return isinstance(failure, MemoryError) or any(
        words in str(failure) for words in ("DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed")
    )


def _machine() -> int:
    return (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) + _swap()


def _swap() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("SwapTotal:"):
                return 1024 * int(line.split()[1])
    return 0


def _groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Limits of the control groups, version 2 and 1, that a container sees as its own root."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" where there is none
            yield int((root / name).read_text(encoding="utf-8"))
