"""Two runs at a time, each in a process of its own with one thread, so that each has a peak of memory of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lowrank_core.cli.study.store import Facts, Record, Store, record_of
from lowrank_core.cli.study.trial import Trial

WORKERS = 2
_PRELOADED = ("lowrank_core.cli.study.loaded",)  # what every run imports: once, then forked
_LOOK = 0.5  # seconds between two looks at whether to stop


class Named(Protocol):
    """A run, known by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def make(trial: Trial, decided_by: Facts, folder: Path) -> None:
    """Makes one run of the comparison of optimizers and writes its file."""
    from lowrank_core.cli.study.measure import measure  # loads torch, which who starts this one does without

    alone(lambda: measure(trial), lambda result: Store(folder).write(trial, record_of(trial, decided_by, result)))


def finish(
    next_trial: Callable[[set[str]], T | None],
    decided: Callable[[T], Any],
    folder: Path,
    *,
    over: Callable[[], bool],
    stop: Callable[[], bool],
    make: Callable[[T, Any, Path], None] = make,  # type: ignore[assignment]
    preload: tuple[str, ...] = _PRELOADED,
) -> Iterator[tuple[T, bool]]:
    """Makes runs until there are no more; yields each that has ended, and whether it was made.

    `next_trial` gets the names of runs not to hand out; `make`, a function of a module, gets a run, what was `decided`
    when it began, and `folder`, in a process of its own that has imported `preload`.

    Once `over()` is true no run is begun. Once `stop()` is, or the iterator is closed, those that are under way end
    and leave no file, but those that have nothing left to do than to write it, which they do.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the runs' NumPy; the environment goes with a fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    running: dict[BaseProcess, T] = {}
    failed: set[str] = set()
    try:
        while not stop():
            while len(running) < WORKERS and not over():
                trial = next_trial(failed | {one.name for one in running.values()})
                if trial is None:
                    break
                process: BaseProcess = context.Process(target=make, args=(trial, decided(trial), folder), daemon=True)
                process.start()
                running[process] = trial
            if not running:
                return
            wait([process.sentinel for process in running], timeout=_LOOK)
            for process in [one for one in running if not one.is_alive()]:
                trial, made = running.pop(process), process.exitcode == 0
                failed |= set() if made else {trial.name}
                yield trial, made
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def alone(measure: Callable[[], Record], keep: Callable[[Record], None]) -> None:
    """Measures in this process, made for it, and keeps what came out, with the seconds it took beside others.

    Ctrl-C reaches the whole group of processes; who started this one decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    began = time.monotonic()
    result = measure()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a run that is made is not thrown away, nor half a file left
    keep({**result, "seconds_shared": round(time.monotonic() - began, 2)})
