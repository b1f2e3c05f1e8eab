"""Runs `lowrank-core train` as a user does and keeps what came out."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from _harness import ROOT, commit, cpu_model, versions


def train(**options: Any) -> dict[str, Any]:
    """The run's summary.json, with its wall-clock seconds from start to end as `wall_s`."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lowrank_core", "train", "--out", folder, *words]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
        return {**summary, "wall_s": time.perf_counter() - started}


def write(name: str, **facts: Any) -> None:
    """Writes docs/results/<name>.json: where and when it ran, then `facts`."""
    path = ROOT / "docs" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "versions": versions(),
        **facts,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
