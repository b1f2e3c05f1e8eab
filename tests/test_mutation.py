"""tools/mutate.py: what it finds in a small package, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
SOURCE = '''\
"""A small package."""


def half(x: float, floor: float = 0.0) -> float:
    """Half of `x`, at least `floor`."""
    if x < 0:
        raise ValueError(f"`x` must be >= {0 + 0}")
    while x > 100:
        x -= 100
    return max(abs(x / 2), floor)
'''
TEST = """\
from pathlib import Path

from small import half


def test_half():
    Path("running").touch()
    assert half(6.0) == 3.0
    assert half(104.0) == 2.0
"""
# How a run of the tool tries three mutants of `half`: caught, survived, and one that never ends.
DRIVER = """\
import signal
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from mutation.copies import Copy
from mutation.ledger import Ledger
from mutation.mutant import between
from mutation.tests_of import Stages
from mutation.trials import Case, try_all

root, path = Path(sys.argv[1]), "python/small/__init__.py"
source = (root / path).read_text()
changes = {"caught": ("x / 2", "x / 3"), "survived": ("0.0)", "-1.0)"), "endless": ("x -= 100", "x -= 0")}
cases = [Case(between(path, name, source, source.replace(*changes[name])), name) for name in sys.argv[3:]]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as tools/mutate.py
with Copy(root, "small", cpu_limit=2 if "survived" in sys.argv else 1000, preload=["pytest"]) as copy:
    copy.check()
    print(copy.tree, flush=True)
    try_all(cases, {path: source}, Ledger(root / "ledger"), [copy], lambda *_: Stages((), (("tests",),)))
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports from tools/, without leaving modules behind."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(TOOLS)):
            del sys.modules[name]


@pytest.fixture
def header_sites(tools: None) -> ModuleType:
    return import_module("mutation.header_sites")


@pytest.fixture
def python_sites(tools: None) -> ModuleType:
    pytest.importorskip("cosmic_ray", reason="the extra `mutate` is not installed")
    return import_module("mutation.python_sites")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A tree with the package `small` and its test."""
    for path, text in (("python/small/__init__.py", SOURCE), ("tests/test_half.py", TEST), ("driver.py", DRIVER)):
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_text(text)
    return tmp_path / "root"


def started(package: Path, *mutants: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(package / "driver.py"), str(package), str(TOOLS), *mutants]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "ledger"}


def test_each_end_is_found_and_the_tree_stays_as_it_is(package: Path, tools: None) -> None:
    before = contents(package)
    output, _ = started(package, "caught", "survived", "endless").communicate(timeout=120)
    records = import_module("mutation.ledger").Ledger(package / "ledger")._records.values()
    assert {(one["origin"], one["outcome"], one["by"]) for one in records} == {
        ("caught", "caught", "tests/test_half.py::test_half"),
        ("survived", "survived", ""),
        ("endless", "caught", "time limit"),
    }, output
    assert contents(package) == before
    assert not Path(output.split()[0]).exists()


def test_what_a_broken_test_caught_is_tried_again(tmp_path: Path, tools: None) -> None:
    ledger_of = import_module("mutation.ledger").Ledger
    for name in ("right", "wrong"):
        ledger_of(tmp_path / "ledger").put(name, {"outcome": "caught", "by": f"tests/test_{name}.py::test"})
    ledger_of(tmp_path / "ledger").doubt(["tests/test_wrong.py::test"])
    found = ledger_of(tmp_path / "ledger")
    assert found.get("right")["outcome"] == "caught"
    assert found.get("wrong") == {"outcome": "unsettled", "by": ""}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stop_leaves_nothing_behind(package: Path, number: signal.Signals) -> None:
    before = contents(package)
    with started(package, "endless") as run:
        assert run.stdout is not None
        tree = Path(run.stdout.readline().strip())
        while not (tree / "running").exists():
            time.sleep(0.05)
        assert processes_in(tree)
        run.send_signal(number)
        assert run.wait(timeout=60) != 0
    deadline = time.monotonic() + 30
    while (left := processes_in(tree)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    if number == signal.SIGKILL:
        shutil.rmtree(tree.parent)  # which nobody else can do
    assert not tree.parent.exists()
    assert contents(package) == before


def processes_in(folder: Path) -> list[str]:
    """The processes that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_copy_that_is_not_the_one_imported_is_refused(package: Path, tools: None) -> None:
    copies = import_module("mutation.copies")
    with copies.Copy(package, "json") as copy, pytest.raises(RuntimeError, match="must be imported from the copy"):
        copy.check()


def test_places_in_python(python_sites: ModuleType) -> None:
    changes = {(site.kind, site.mutated()) for site in python_sites.sites("small.py", SOURCE)}
    for kind, old, new in (
        ("default", "0.0) ->", "1) ->"),
        ("comparison", "x < 0:", "x <= 0:"),
        ("comparison", "if x < 0", "if not x < 0"),
        ("constant", "x > 100", "x > 101"),
        ("arithmetic", "x / 2", "x * 2"),
        ("call", "abs(x / 2)", "(x / 2)"),
        ("argument", ", floor)\n", ")\n"),
    ):
        assert (kind, SOURCE.replace(old, new)) in changes, (kind, old)
    unchanged = [line for line in SOURCE.splitlines() if '"' in line]  # texts, and what is raised
    assert all(line in mutated for _, mutated in changes if mutated for line in unchanged)


def test_places_in_a_header(header_sites: ModuleType) -> None:
    source = """\
// 1 + 1
constexpr int kSize = 8;
LRC_HD float half(float x) {
  static_assert(1 + 1 == 2);
  if (x < 0.5f && kSize > 2) return -root(x) * 2.0f;  // 1 + 1
  return float(x);
}
"""
    changes = {site.mutated() for site in header_sites.sites("small.h", source)}
    for old, new in (
        ("x < 0.5f", "x <= 0.5f"),
        ("&&", "||"),
        ("0.5f", "1.5f"),
        ("-root", "root"),
        ("root(x)", "(x)"),
        (" * ", " / "),
    ):
        assert source.replace(old, new) in changes, old
    kept = [
        line
        for line in source.splitlines()
        if line[:3] in ("// ", "con", "LRC") or "assert" in line or "float(x)" in line
    ]
    assert all(line in mutated for mutated in changes for line in kept)


def test_a_draw_is_a_function_of_the_seed_and_of_nothing_elsewhere(header_sites: ModuleType) -> None:
    drawn = import_module("mutation.mutant").drawn
    one = "LRC_HD float f(float x) {\n  return x + 1.0f;\n}\n"
    other = "LRC_HD float g(float x) {\n  return 3.0f * x;\n}\n"

    def order(source: str, seed: int) -> list[tuple[str, str]]:
        return [mutant.change(source) for mutant in drawn(header_sites.sites("a.h", source), {"a.h": source}, seed)]

    assert order(one, 1) == order(one, 1)
    assert len({tuple(order(one + other, seed)) for seed in range(8)}) > 1
    moved = [change for change in order(other + one, 5) if "1.0f" in change[0]]
    assert moved == order(one, 5)


def test_wider_tests_are_run_file_by_file(tools: None) -> None:
    """Or a folder of tests would reach the limit of time, and every mutant would seem to be caught."""
    tests_of, root = import_module("mutation.tests_of"), TOOLS.parent
    path = "python/lowrank_core/optim/parts/rules/adam.py"
    near, all_of_them = tests_of.nearest(path, root), tests_of.stages(path, root)
    assert near.more and all_of_them.python[:1] == near.python and len(all_of_them.python) > 50
    assert all(len(files) == 1 for files in all_of_them.python[1:])
    files = [file for stage in all_of_them.python for file in stage]
    assert len(set(files)) == len(files) and "tests/optim/test_contract.py" in files
    header = tests_of.stages("cpp/include/lowrank_core/rsvd.h", root)
    assert all(len(files) == 1 for files in header.python) and not header.more


def test_the_nearest_tests_are_those_of_the_longest_prefix(tools: None) -> None:
    """Wherever its row stands."""
    tests_of, root = import_module("mutation.tests_of"), TOOLS.parent
    for name, near in (("methods/frugal", "test_frugal"), ("parts/residuals/sign", "test_frugal")):
        found = tests_of.nearest(f"python/lowrank_core/optim/{name}.py", root)
        assert found.python[0][0] == f"tests/optim/{near}.py"
