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

from lowrank_core.cli.study.store import Decided, Facts, Store, record_of
from lowrank_core.cli.study.trial import Trial

WORKERS = 2
_PRELOADED = ("lowrank_core.cli.study.loaded",)  # what every run imports: once, then forked
_LOOK = 0.5  # seconds between two looks at whether to stop
Next = Callable[[set[str]], Trial | None]  # given the names of runs not to hand out


def finish(
    next_trial: Next, decided: Decided, folder: Path, *, over: Callable[[], bool], stop: Callable[[], bool]
) -> Iterator[tuple[Trial, bool]]:
    """Makes runs until there are no more; yields each that has ended, and whether it was made.

    Once `over()` is true no run is begun. Once `stop()` is, or the iterator is closed, those that are under way end
    and leave no file, but those that have nothing left to do than to write it, which they do.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the runs' NumPy; the environment goes with a fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    running: dict[BaseProcess, Trial] = {}
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


def make(trial: Trial, decided_by: Facts, folder: Path) -> None:
    """Makes one run and writes its file. Ctrl-C reaches the whole group of processes; who started this one decides."""
    from lowrank_core.cli.study.measure import measure  # loads torch, which who starts this one does without

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    began = time.monotonic()
    record = record_of(trial, decided_by, measure(trial))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a run that is made is not thrown away, nor half a file left
    Store(folder).write(trial, {**record, "seconds_shared": round(time.monotonic() - began, 2)})
