"""`lowrank-core info`: what this installation is and what it found on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from lowrank_core.cli import waiting
from lowrank_core.cli.environment import cpu_name, versions
from lowrank_core.cli.errors import CliError
from lowrank_core.extras import how_to_install

OVERRIDE = "LOWRANK_CORE_ISA"  # read by the compiled core when it first asks for its level

_OPENMP = re.compile(r"/lib(gomp|omp|iomp5)\b[^/]*\.so[^/ ]*$")


def run(options: argparse.Namespace) -> int:
    """Prints the facts as a table or as JSON."""
    facts = collect()
    print(json.dumps(facts, indent=1) if options.json else "\n".join(_lines(facts)))
    return 0


def collect() -> dict[str, Any]:
    """All facts as plain values; torch and CuPy are imported if they are installed, and missed if not."""
    from lowrank_core import _core

    forced = os.environ.get(OVERRIDE)
    try:
        active = _core.isa()
    except ValueError as failure:
        raise CliError(f"the environment variable {OVERRIDE} is set to '{forced}': {failure}") from failure
    devices = {"torch": _torch(), "cupy": _cupy()}
    return {
        "versions": versions(),
        "build": dict(_core.build_info()),
        "cpu": cpu_name(),
        "instruction_sets": {"active": active, "available": list(_core.isa_levels()), "override": forced},
        "threads": {
            "lowrank_core": _core.num_threads(),
            "openmp": openmp_libraries(),
            "pools": _pools(),
            "waiting": waiting.chosen(),
        },
        **devices,
    }


def openmp_libraries(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Files of the OpenMP runtimes in this process. More than one is more than one pool of threads."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mapped = (line.split(maxsplit=5)[-1].removesuffix(" (deleted)") for line in lines if "/" in line)
    return sorted({path for path in mapped if _OPENMP.search(path)})


def _pools() -> list[dict[str, Any]] | None:
    """Thread pools as threadpoolctl sees them, None if it is not installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return None
    found: list[dict[str, Any]] = importlib.import_module("threadpoolctl").threadpool_info()
    return [{key: pool.get(key) for key in ("user_api", "internal_api", "num_threads", "filepath")} for pool in found]


def _torch() -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        torch = importlib.import_module("torch")
    except Exception as failure:  # whatever a broken installation raises is what there is to know about it
        return {"error": _words(failure)}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads, cuda = torch.get_num_threads(), torch.version.cuda
    return {"version": torch.__version__, "threads": threads, "cuda": cuda, "gpus": gpus}


def _cupy() -> dict[str, Any] | None:
    if importlib.util.find_spec("cupy") is None:
        return None
    try:
        return {"version": importlib.import_module("cupy").__version__}
    except Exception as failure:
        return {"error": _words(failure)}


def _words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())}"


def _lines(facts: dict[str, Any]) -> list[str]:
    sets, threads, torch = facts["instruction_sets"], facts["threads"], facts["torch"]
    rows = [
        ("lowrank_core", facts["versions"]["lowrank_core"] or "not installed as a package"),
        *((f"build: {key}", str(value)) for key, value in facts["build"].items()),
        ("processor", facts["cpu"]),
        ("instruction set", f"{sets['active']} (available: {', '.join(sets['available'])})"),
        ("override", f"{OVERRIDE}={sets['override']}" if sets["override"] else f"none ({OVERRIDE} is not set)"),
        ("threads", f"{threads['lowrank_core']} in lowrank_core, {(torch or {}).get('threads', 'none')} in torch"),
        ("waiting threads", threads["waiting"] or f"no setting; `train` uses {'='.join(waiting.POLICY)}"),
        *(("OpenMP runtime", path) for path in threads["openmp"]),
        ("torch", _torch_words(torch)),
        ("CuPy", _cupy_words(facts["cupy"])),
    ]
    lines = [f"{name:<24}{value}" for name, value in rows]
    if len(threads["openmp"]) > 1:
        lines.append(
            "warning: more than one OpenMP runtime is loaded; each has its own threads, and "
            "torch.set_num_threads governs only torch's"
        )
    return lines


def _torch_words(torch: dict[str, Any] | None) -> str:
    if torch is None:
        return f"not installed; training needs it: {how_to_install('train')}"
    if "error" in torch:
        return f"cannot be imported ({torch['error']})"
    devices = ", ".join(torch["gpus"]) or "no GPU"
    return f"{torch['version']} (CUDA {torch['cuda'] or 'not built'}, {devices})"


def _cupy_words(cupy: dict[str, Any] | None) -> str:
    if cupy is None:
        return "not installed"
    return f"cannot be imported ({cupy['error']})" if "error" in cupy else str(cupy["version"])
