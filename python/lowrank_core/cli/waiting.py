"""What OpenMP's threads do between two parallel loops: sleep, or spin and take the core from whoever else needs it.

A step is hundreds of short loops. libgomp lets a thread that waits spin for some milliseconds before it sleeps, which
gains little on an idle machine and costs up to nine tenths of the speed where another process wants the cores too.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

POLICY = ("OMP_WAIT_POLICY", "passive")
# Any of them set by the user is the user's choice.
CHOICES = (POLICY[0], "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def chosen() -> str | None:
    """The setting in the environment as `NAME=value`, None if there is none."""
    return next((f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ), None)


def start_over_passive() -> None:
    """Replaces this process by itself with the passive policy, unless the user has chosen one.

    libgomp reads its environment when it is loaded, which `import lowrank_core` does: setting the variable now would
    come too late. Where a process cannot be replaced it goes on as it is: only its speed is at stake.
    """
    if chosen() is None and sys.executable and sys.orig_argv:
        name, value = POLICY
        os.environ[name] = value
        with suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
