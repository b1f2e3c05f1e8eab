"""Times rivals on the same work, side by side, and keeps what was measured.

Every answer is checked before anything is timed. Rivals take turns (`interleaved`) and are compared twice: by the
median over rounds of the ratio within one round, and by their best rounds, which a busy machine disturbs least. Times
are wall-clock seconds.

    bench = Bench("gemm", rounds=25)
    bench.compare("4096x4096x128", {"torch": f, "ours": g}, baseline="torch", error=distance, limit=1e-5, flops=4.3e9)
    bench.finish()
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from lowrank_core.cli.bench.timing import evicting, interleaved

ROOT = Path(__file__).resolve().parents[1]
VERSIONS_OF = (
    "lowrank_core", "numpy", "torch", "scipy", "scikit-learn", "galore-torch", "q-galore-torch", "apollo-torch", "fira",
    "pytorch_optimizer", "bitsandbytes",
)  # fmt: skip


@dataclass
class Row:
    """One rival on one case: seconds, the error of its answer, and its speed as a multiple of the baseline's.

    GFLOP/s and GB/s are those of the median time. `roofline` is the share of the speed that the measured rates
    allow for so many operations and bytes, whichever takes longer (Williams, Waterman, Patterson 2009).
    """

    case: str
    rival: str
    baseline: str
    median_s: float
    quartiles_s: tuple[float, float]
    best_s: float
    speed_vs_baseline: float
    best_speed_vs_baseline: float
    error: float | None
    gflop_per_s: float | None = None
    gb_per_s: float | None = None
    roofline: float | None = None


@dataclass
class Bench:
    """Collects rows, prints them as they come and writes them to docs/results/<name>.json.

    Args:
      name: stem of the result file.
      rounds: timed rounds per case, fewer where `seconds` is reached first, but at least 5.
      seconds: time that one case may take.
      threads: what the rivals were told to use; recorded only.
      pause: seconds before each call, where a rival's idle threads may still turn: OpenBLAS's do so for 2^26 cycles.
      evict: bytes that are copied before each call, so that no rival finds its operands in this core's L2; 0: none.
    """

    name: str
    rounds: int = 25
    seconds: float = 20.0
    threads: int | None = None
    pause: float = 0.0
    evict: int = 16 << 20
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._evict = evicting(self.evict)
        self.copy_gb_per_s, self.product_gflop_per_s = copy_rate(self.threads), product_rate(self.threads)
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        print(
            f"{self.name}: {cpu_model()}, {self.threads or '?'} threads, copy {self.copy_gb_per_s:.1f} GB/s, "
            f"float32 product {self.product_gflop_per_s:.0f} GFLOP/s"
        )
        if self.load is not None and self.load > 1.0:
            print(f"other work is running (load average {self.load:.1f}): times are too long, ratios uncertain")
        print(
            f"{'case':30} {'rival':22} {'ms':>9} {'quartiles':>17} {'GFLOP/s':>8} {'GB/s':>6}"
            f" {'roof':>5} {'speed':>6} {'(best)':>6} {'error':>8}"
        )

    def compare(
        self,
        case: str,
        rivals: Mapping[str, Callable[[], object]],
        *,
        baseline: str,
        error: Callable[[object], float] | Mapping[str, Callable[[object], float]],
        limit: float | Mapping[str, float],
        flops: float | Mapping[str, float] | None = None,
        nbytes: float | Mapping[str, float] | None = None,
    ) -> dict[str, Row]:
        """Checks and times `rivals`, each a call that returns its answer; the row of each by name.

        Args:
          error: of an answer, which must not exceed `limit`; either is one for all or one per rival, without those that
            do other work and are there for their time alone.
          flops: operations of one call, for GFLOP/s; one for all or one per rival, without those that do other work.
          nbytes: bytes that one call has to move, for GB/s; the same.

        Raises:
          ValueError: an answer is wrong, or the baseline is not among the rivals.
        """
        if baseline not in rivals:
            raise ValueError(f"compare: `baseline` must be one of {', '.join(rivals)}, got {baseline!r}")
        measures = error if isinstance(error, Mapping) else dict.fromkeys(rivals, error)
        errors = {rival: float(measure(rivals[rival]())) for rival, measure in measures.items()}
        for rival, value in errors.items():
            allowed = limit if isinstance(limit, float) else limit[rival]
            if not value <= allowed:
                raise ValueError(f"{case}: the error of {rival} must be <= {allowed:.1e}, got {value:.1e}")
        seconds = interleaved(rivals, self.rounds, seconds=self.seconds, before=self._before)
        found = {}
        for rival, times in seconds.items():
            median = statistics.median(times)
            work, moved = of_rival(flops, rival), of_rival(nbytes, rival)
            low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
            found[rival] = Row(
                case=case,
                rival=rival,
                baseline=baseline,
                median_s=median,
                quartiles_s=(low, high),
                best_s=min(times),
                speed_vs_baseline=statistics.median(b / t for b, t in zip(seconds[baseline], times, strict=True)),
                best_speed_vs_baseline=min(seconds[baseline]) / min(times),
                error=errors.get(rival),
                gflop_per_s=None if work is None else work / median / 1e9,
                gb_per_s=None if moved is None else moved / median / 1e9,
                roofline=self._least(work, moved) / median if work or moved else None,
            )
            self._print(found[rival])
        self.rows += found.values()
        return found

    def finish(self, **facts: object) -> Path:
        """Writes docs/results/<name>.json with the rows, the machine and any further `facts`; returns its path."""
        path = ROOT / "docs" / "results" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "command": " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "versions": versions(),
            "threads": self.threads,
            "copy_gb_per_s": round(self.copy_gb_per_s, 2),
            "product_gflop_per_s": round(self.product_gflop_per_s, 1),
            "load_average_before": self.load,
            **facts,
            "rows": [asdict(row) for row in self.rows],
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {path.relative_to(ROOT)}")
        return path

    def _least(self, flops: float | None, nbytes: float | None) -> float:
        """Seconds that the measured rates leave as the least."""
        return max((flops or 0.0) / self.product_gflop_per_s, (nbytes or 0.0) / self.copy_gb_per_s) / 1e9

    def _before(self) -> None:
        time.sleep(self.pause)
        self._evict()

    def _print(self, row: Row) -> None:
        low, high = (1e3 * s for s in row.quartiles_s)
        gflop = f"{row.gflop_per_s:8.0f}" if row.gflop_per_s is not None else f"{'':8}"
        gb = f"{row.gb_per_s:6.1f}" if row.gb_per_s is not None else f"{'':6}"
        error = f"{row.error:8.1e}" if row.error is not None else f"{'':8}"
        roof = f"{row.roofline:5.2f}" if row.roofline is not None else f"{'':5}"
        print(
            f"{row.case:30} {row.rival:22} {1e3 * row.median_s:9.3f} {low:8.3f}-{high:8.3f} {gflop} {gb} {roof}"
            f" {row.speed_vs_baseline:6.2f} {row.best_speed_vs_baseline:6.2f} {error}",
            flush=True,
        )


def of_rival(amount: float | Mapping[str, float] | None, rival: str) -> float | None:
    return amount.get(rival) if isinstance(amount, Mapping) else amount


def peer(module: str) -> Any:
    """A peer's module, or None where it is not installed: then it takes no part, and that is said."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return import_module(module)
    except ImportError as error:
        print(f"without {module}: {error}")
        return None


def copy_rate(threads: int | None, nbytes: int = 2 << 30, rounds: int = 5) -> float:
    """GB/s of torch copying float32 with `threads` or scaling it in place, the faster one; read and write counted.

    A copy also reads the lines that it overwrites, which a step that changes arrays in place does not. The arrays are
    far larger than a last-level cache.
    """
    with torch_threads(threads):
        source = torch.ones(nbytes // 8)
        target = torch.empty_like(source)
        seconds = min(best_of(lambda: target.copy_(source), rounds), best_of(lambda: source.mul_(1.0), rounds))
    return nbytes / seconds / 1e9


def product_rate(threads: int | None, size: int = 2048, rounds: int = 7) -> float:
    """GFLOP/s of torch multiplying float32 matrices [size, size] at "medium", its fastest setting here."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with torch_threads(threads):
        a, out = torch.ones(size, size), torch.empty(size, size)
        seconds = best_of(lambda: torch.mm(a, a, out=out), rounds)
    torch.set_float32_matmul_precision(precision)
    return 2 * size**3 / seconds / 1e9


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    yield
    torch.set_num_threads(before)


def best_of(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds` calls."""
    best = float("inf")
    for _ in range(rounds):
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def cpu_model() -> str:
    """The processor's name, with family and model where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = "/".join(facts.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{facts.get('model name', platform.machine())} ({numbers})"


def versions() -> dict[str, str]:
    """Of the packages that a bench may compare, those that are installed."""
    found = {}
    for package in VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that is measured, with "+changes" where more than results differs from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + (
            "+changes" if git("status", "--porcelain", "--", ".", ":!docs/results") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
