"""Plants mutants one by one in a copy of the tree and runs the tests that should catch them: `make mutate`.

Mutants are drawn by a seed from all places of optim/, adapters/, ops/, memory/, cli/study/ and the headers that generic
operators of mutation reach; those that were planted by hand once come first. Results are kept in build/mutate, and a
later run goes on there. A summary is written to docs/results/mutants.md after a run over all files, and to
docs/results/mutants_of_files.md after one with --each.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from mutation import header_sites, python_sites
from mutation.built import BuiltCopy
from mutation.copies import Copy
from mutation.ledger import Ledger, Record, doubted, proof
from mutation.mutant import Site, drawn
from mutation.planted import defaults, planted
from mutation.tests_of import nearest, stages
from mutation.trials import Case, try_all
from mutation.verdict import summary, unsound, write_page
from report import ROOT

PACKAGE = "lowrank_core"
FOLDERS = ("optim", "adapters", "ops", "memory", "cli/study")
DRAWN_FROM = tuple(f"python/{PACKAGE}/{folder}/**/*.py" for folder in FOLDERS)
HEADERS = (f"cpp/include/{PACKAGE}/**/*.h",)
PLANTED_IN = (f"python/{PACKAGE}/cli/*.py",)
OF_HEADERS = 4  # one mutant of so many is one of a header


def sources_of(root: Path) -> dict[str, str]:
    """All files that mutants are planted in, by their path in `root`."""
    paths = sorted({path for glob in (*DRAWN_FROM, *HEADERS, *PLANTED_IN) for path in root.glob(glob)})
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def cases(sources: dict[str, str], seed: int, count: int) -> Iterator[Case]:
    """Planted faults, then the drawn mutants of Python files."""
    for fault, mutant in (*planted(sources), *defaults(sources)):
        yield Case(mutant, fault)
    yield from islice(of_python(sources, seed), count - count // OF_HEADERS)


def of_each(sources: dict[str, str], seed: int, number: int) -> Iterator[Case]:
    """So many mutants drawn in each of the Python files."""
    for path in sorted(sources):
        yield from islice(of_python({path: sources[path]}, seed), number)


def of_python(sources: dict[str, str], seed: int) -> Iterator[Case]:
    """In the order of the draw."""
    chosen = {path for path in sources if any(f"/{PACKAGE}/{part}/" in path for part in FOLDERS)}
    places: list[Site] = []
    for path in sorted(path for path in chosen if path.endswith(".py")):
        places += python_sites.sites(path, sources[path])
    return (Case(mutant, "drawn") for mutant in drawn(places, sources, seed))


def of_headers(sources: dict[str, str], seed: int) -> Iterator[Case]:
    """In the order of the draw."""
    places: list[Site] = []
    for path in sorted(path for path in sources if path.endswith(".h")):
        places += header_sites.sites(path, sources[path])
    return (Case(mutant, "drawn") for mutant in drawn(places, sources, seed))


def extension() -> Path:
    """The compiled module of the installation that runs this."""
    from lowrank_core import _core

    return Path(_core.__file__)


def run(options: argparse.Namespace, ledger: Ledger) -> list[Record]:
    """All mutants that were asked for: those in the ledger as they are, the others now."""
    sources = sources_of(ROOT)

    def wanted(case: Case) -> bool:
        return options.only is None or case.mutant.path.startswith(tuple(options.only))

    def known(case: Case) -> Record | None:
        found = ledger.get(case.mutant.key(sources[case.mutant.path]))
        if found is None or (found["outcome"] == "unsettled" and not options.quick and proof(found) is None):
            return None
        again = options.again and found["outcome"] == "survived" and proof(found) is None
        return None if again else found

    def finish(chosen: list[Case], make: type[Copy], core: Path | None) -> list[Record]:
        todo = [case for case in chosen if known(case) is None]
        if make is BuiltCopy:  # what one file compiles anew, the next mutant of it does
            todo.sort(key=lambda case: case.mutant.path)
        if todo and not options.report:
            with ExitStack() as stack:
                copies = [stack.enter_context(make(ROOT, PACKAGE, core)) for _ in range(min(options.jobs, len(todo)))]
                for copy in copies:
                    _prepare(copy)
                try_all(todo, sources, ledger, copies, nearest if options.quick else stages)
        keys = dict.fromkeys(
            case.mutant.key(sources[case.mutant.path]) for case in chosen
        )  # one may be planted and drawn
        return [found for key in keys if (found := ledger.get(key))]

    found: list[Record] = []
    if options.each:
        named = {path: text for path, text in sources.items() if options.only and path.startswith(tuple(options.only))}
        return finish(list(of_each(named, options.seed, options.each)), Copy, extension())
    if options.part in ("all", "python"):
        found += finish(
            [case for case in cases(sources, options.seed, options.count) if wanted(case)], Copy, extension()
        )
    if options.part in ("all", "headers"):
        drawn_ones, goal = filter(wanted, of_headers(sources, options.seed)), options.count // OF_HEADERS
        while goal and (more := list(islice(drawn_ones, goal))):
            tried = finish(more, BuiltCopy, None)
            goal -= sum(one["outcome"] != "stillborn" for one in tried)
            found += tried
    return found


def _prepare(copy: Copy) -> None:
    if isinstance(copy, BuiltCopy):
        copy.configure()
        if problem := copy.build(["_core"]):
            raise RuntimeError(f"mutate: the copy must compile without a mutant, got: {problem}")
    copy.check()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seed", type=int, default=10, help="of the draw (10)")
    made.add_argument("--count", type=int, default=160, help="mutants drawn, a quarter of them of headers (160)")
    made.add_argument("--only", metavar="PATH", nargs="+", help="files whose path starts so")
    made.add_argument("--each", type=int, default=0, help="mutants drawn in each Python file of --only, and no others")
    made.add_argument("--part", choices=("all", "python", "headers"), default="all", help="what mutants are made of")
    made.add_argument("--jobs", type=int, default=1, help="copies that are tested at the same time (1)")
    made.add_argument("--quick", action="store_true", help="run the nearest tests alone; a later run settles the rest")
    made.add_argument("--report", action="store_true", help="try none, write the summary of those tried before")
    made.add_argument("--again", action="store_true", help="try survivors again, with the tests as they are now")
    return made


def main() -> int:
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no copy stays behind
    ledger = Ledger(ROOT / "build/mutate/results.jsonl")
    found = run(options, ledger)
    wrong = [] if options.report else unsound(found, lambda: Copy(ROOT, PACKAGE, extension()))
    for test in wrong:
        print(f"mutate: {test} fails without a mutant, too; what it caught will be tried again")
    ledger.doubt(wrong)
    found = [doubted(one, wrong) for one in found]
    print(summary(found))
    if options.each:
        write_page(ROOT / "docs/results/mutants_of_files.md", found, f"--seed {options.seed} --each {options.each}")
    elif options.only is None and options.part == "all" and not options.quick:
        write_page(ROOT / "docs/results/mutants.md", found, f"--seed {options.seed} --count {options.count}")
    return 1 if wrong or any(one["outcome"] in ("survived", "unsettled") and proof(one) is None for one in found) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
