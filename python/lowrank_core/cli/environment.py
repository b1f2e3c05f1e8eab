"""What a result depends on besides its options: versions, machine, date."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any


def version(package: str) -> str | None:
    """Installed version of a distribution, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of what computes: another one may round differently."""
    packages = ("lowrank_core", "torch", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def environment() -> dict[str, Any]:
    """Plain values for JSON: `versions`, `machine` (processor, usable cores) and `date` (UTC, ISO 8601)."""
    return {
        "versions": versions(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor as Linux names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
