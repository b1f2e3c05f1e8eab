"""Runs `lowrank-core train` as a user does and keeps what came out: each run a file, made once.

Losses alone are kept. They do not depend on what else the machine does, so a run may take its time in the background;
seconds come from `bench/train_pairs.py --time`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from _harness import ROOT, commit, cpu_model, versions
from lowrank_core.cli.study.sources import meaning

RESULTS = ROOT / "docs" / "results"
# The default of `lowrank-core train`, spelt out: a default that changes later makes no old run another. Only validation
# is done more seldom; it decides no number but its own.
MODEL: dict[str, Any] = {
    "val_fraction": 0.1, "dim": 256, "layers": 4, "heads": 4, "ffn": 688, "seq_len": 128, "steps": 500, "batch_size": 8,
    "accumulation": 1, "warmup": 50, "min_lr_ratio": 0.1, "clip": 1.0, "precision": "fp32", "eval_every": 250,
    "eval_batches": 16, "eps": 1e-8,
}  # fmt: skip
GALORE: dict[str, Any] = {"rank": 64, "proj_type": "std", "projector": "rsvd", "moment_dtype": "float32"}
_CURVE_EVERY = 10  # steps
_TRAINING = ("cli/data.py", "cli/loop.py", "cli/model.py", "cli/optimizers.py", "cli/text.py")
_SOURCES = {
    "adamw": [f"python/lowrank_core/{name}" for name in _TRAINING],
    "galore": [
        *(f"python/lowrank_core/{name}" for name in _TRAINING),
        *("python/lowrank_core/optim", "python/lowrank_core/ops", "cpp/include", "cpp/src", "cpp/bindings"),
    ],
}


def options(optimizer: str, seed: int, **own: Any) -> dict[str, Any]:
    """All options of a run of `optimizer`, its `own` among them."""
    return {"optimizer": optimizer, "seed": seed, **MODEL, **(GALORE if optimizer == "galore" else {}), **own}


def train(optimizer: str, seed: int, **own: Any) -> dict[str, Any]:
    """The run's record: read from docs/results/runs/ if its fingerprint fits, else made and written there.

    `val_loss` is the validation loss (nats per byte) after the last step, None where the run diverged.
    """
    asked = options(optimizer, seed, **own)
    name = f"{optimizer}-seed{seed}-{_digest(json.dumps(asked, sort_keys=True))[:8]}"
    path = RESULTS / "runs" / f"{name}.json"
    fingerprint = _fingerprint(optimizer, asked)
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if record.get("fingerprint") != fingerprint:
        record = {"fingerprint": fingerprint, **_made(asked)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record) + "\n")
    return {"file": f"runs/{path.name}", **record}


def best(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of the lowest final loss; diverged runs come last."""
    return min(records, key=lambda record: (record["val_loss"] is None, record["val_loss"] or 0.0))


def write(name: str, **facts: Any) -> None:
    """Writes docs/results/<name>.json: what was asked and where, then `facts`."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**_origin(" ".join(["python", _script(), *sys.argv[1:]])), **facts}, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


def _made(asked: dict[str, Any]) -> dict[str, Any]:
    words = [word for name, value in asked.items() for word in (_flag(name), *_words(value))]
    command = ["-m", "lowrank_core", "train", *words, "--threads", "1"]
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run([sys.executable, *command, "--out", folder], capture_output=True, text=True)
        diverged = ended.returncode == 2 and " diverged at step " in ended.stderr
        if ended.returncode and not diverged:
            raise SystemExit(f"{' '.join(command)}: exit status {ended.returncode}: {ended.stderr.strip()}")
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        summary = {} if diverged else json.loads(Path(folder, "summary.json").read_text())["runs"][0]
    result = {key: summary.get(key) for key in ("val_loss", "best_val_loss", "state_bytes", "ratio")}
    return {
        **_origin(" ".join(["python", *command])),
        "options": asked,
        "threads": 1,
        "diverged": ended.stderr.strip() if diverged else None,
        **result,
        "val_curve": [(line["step"], line["val_loss"]) for line in lines if line["event"] == "eval"],
        "train_curve": [
            (line["step"], line["train_loss"])
            for line in lines
            if line["event"] == "train" and line["step"] % _CURVE_EVERY == 0
        ],
    }


def _origin(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def _fingerprint(optimizer: str, asked: dict[str, Any]) -> str:
    """Of the options, the sources that decide the numbers, and the versions; Python's own brings the text."""
    installed = versions()
    facts: list[Any] = [asked, platform.python_version(), installed["torch"], installed["numpy"]]
    for path in _files(_SOURCES[optimizer]):
        facts.append((path.relative_to(ROOT).as_posix(), _digest(meaning(path))))
    return _digest(json.dumps(facts, sort_keys=True))


def _files(sources: list[str]) -> Iterator[Path]:
    for source in sources:
        found = [ROOT / source] if (ROOT / source).is_file() else sorted((ROOT / source).rglob("*"))
        yield from (path for path in found if path.suffix in {".py", ".h", ".cpp"})


def _script() -> str:
    return f"bench/{Path(sys.argv[0]).name}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(value: Any) -> list[str]:
    return [str(word) for word in (value if isinstance(value, list | tuple) else [value])]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
