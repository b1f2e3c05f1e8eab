"""Trying mutants: each is planted in a copy of the tree, and its tests run until one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from mutation.built import BuiltCopy
from mutation.copies import Copy
from mutation.ledger import Ledger, Record, record
from mutation.mutant import Mutant
from mutation.tests_of import Stages

Plan = Callable[[str, Path], Stages]


class Case(NamedTuple):
    """A mutant to try, and where it comes from."""

    mutant: Mutant
    origin: str


def attempt(copy: Copy, case: Case, source: str, plan: Plan) -> Record:
    """Plants a mutant in the copy, runs its tests until one fails, and takes the mutant out again."""
    mutant, seconds = case.mutant, 0.0
    stages = plan(mutant.path, copy.tree)
    copy.write(mutant.path, mutant.applied(source))
    try:
        if isinstance(copy, BuiltCopy):
            for name in stages.compiled:
                if copy.build([name]):
                    return record(mutant, source, case.origin, "stillborn", "the compiler", seconds)
                trial = copy.compiled_test(name)
                if trial.caught:
                    return record(mutant, source, case.origin, "caught", trial.by, trial.seconds)
            if copy.build(["_core"]):
                return record(mutant, source, case.origin, "stillborn", "the compiler", seconds)
        for tests in stages.python:
            trial = copy.pytest(tests)
            seconds += trial.seconds
            if trial.caught:
                return record(mutant, source, case.origin, "caught", trial.by, seconds)
        return record(mutant, source, case.origin, "unsettled" if stages.more else "survived", "", seconds)
    finally:
        copy.write(mutant.path, source)


def try_all(todo: list[Case], sources: dict[str, str], ledger: Ledger, copies: list[Copy], plan: Plan) -> None:
    """Each case once, on as many threads as there are copies."""
    free: Queue[Copy] = Queue()
    for copy in copies:
        free.put(copy)

    def one(case: Case) -> tuple[Case, Record]:
        copy = free.get()
        try:
            return case, attempt(copy, case, sources[case.mutant.path], plan)
        finally:
            free.put(copy)

    pool = ThreadPoolExecutor(len(copies))
    try:
        for number, future in enumerate(as_completed([pool.submit(one, case) for case in todo]), 1):
            case, found = future.result()
            ledger.put(case.mutant.key(sources[case.mutant.path]), found)
            print(f"{number}/{len(todo)} {_line(found)}", flush=True)
    except BaseException:
        for copy in copies:
            copy.stop()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _line(found: Record) -> str:
    what = found["before"] + "  ->  " + found["after"] if found["origin"] == "drawn" else found["origin"]
    by = f" by {found['by']}" if found["by"] else ""
    return f"{found['outcome']} in {found['seconds']:.0f} s{by}: {found['path']}:{found['line']}: {what}"
