"""How much memory a step needs for itself: its peak beyond weights, gradients and state.

Each rival steps in a process of its own, `python -m lowrank_core.cli.bench.peak`, whose peak Linux keeps and lets be
set back. What a package keeps from one step to the next counts as well.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrank_core.cli.bench.shapes import Shapes

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KINDS = ("first", "between", "refresh")  # steps
Peak = dict[str, int | None]


def peak_of(rival: str, method: str | None, shapes: Shapes, rank: int, threads: int) -> Peak | None:
    """Bytes by the kind of step, None for one that there is not; None where the system does not tell, or it failed."""
    if not _RESET.exists():
        return None
    order = json.dumps({"rival": rival, "method": method, "shapes": shapes, "rank": rank, "threads": threads})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    found: Peak = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(order: dict[str, Any]) -> Peak:
    """What `peak_of` asks for, of this process."""
    import torch

    from lowrank_core.cli.bench.entry import warm_up
    from lowrank_core.cli.bench.field import find_rival
    from lowrank_core.cli.bench.peers import quiet
    from lowrank_core.cli.bench.rivals import parameters, search_always, state_bytes

    torch.set_num_threads(order["threads"])
    rival, shapes = find_rival(order["rival"], order["method"]), [(m, n) for m, n in order["shapes"]]
    with quiet():
        warm = warm_up(rival)
        if rival.ours and search_always(warm):
            warm.step()
        optimizer = rival.build(parameters(shapes), order["rank"])
        _trim()
        held = _status("VmRSS")

        def extra() -> int:
            _trim()
            _RESET.write_text("5", encoding="ascii")
            optimizer.step()
            return max(0, _status("VmHWM") - held - state_bytes(optimizer))

        found: Peak = {"first": extra(), "between": extra()}
        return {**found, "refresh": extra() if rival.ours and search_always(optimizer) else None}


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _trim() -> None:
    """Gives back what was freed, so that it does not hide what is taken next."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
