"""Checks that imports and includes point downwards only and in no circle, and that a part of the package needs NumPy
alone.

    cli, integrations -> adapters, optim -> memory -> ops -> _core (bindings)
    _core (bindings) -> src | cuda -> family headers -> core headers

`reference` stands beside the package: tests and benches import it, the package does not. No family of `ops` imports
another, and what they share imports none. An import inside a function counts as any other. One under TYPE_CHECKING
counts for the layers alone: what only annotations name does not run, so a circle of these is told but passes.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from check_families import FAMILIES, owner_of
from import_cycles import circles, resolved
from report import finish, root_argument

PACKAGE = "lowrank_core"
# What each part of the package may import of the others; every part may import itself.
BELOW: dict[str, set[str]] = {
    "ops": {"_core"},
    "reference": set(),
    "telemetry": set(),
    "checks": set(),
    "extras": set(),
    "atomic": set(),
    "tree_file": {"atomic"},
    "memory": {"checks", "ops"},
    "optim": {"checks", "extras", "memory", "ops", "telemetry", "tree_file", "atomic"},
    "adapters": {"checks", "extras", "memory", "ops", "optim", "telemetry"},
    "integrations": {"checks", "extras", "memory", "ops", "optim", "adapters", "telemetry"},
    "cli": {
        *("__version__", "_core", "extras", "atomic", "tree_file", "telemetry"),
        *("memory", "ops", "optim", "adapters", "integrations"),
    },
    "__init__": {"ops"},
    "__main__": {"cli"},
}
LIGHT = {*sys.stdlib_module_names, "numpy"}  # what may be imported with what `ALONE` names
ALONE = (PACKAGE, f"{PACKAGE}.memory")

PYTHON, TORCH, CUDA = r"pybind11\b|Python\.h$", r"(torch|ATen|c10)/", r"cuda"
FOREIGN = {  # folder: what its files may not include
    "cpp/include": rf"{PYTHON}|{TORCH}|{CUDA}|iostream$",
    "cpp/src": rf"{PYTHON}|{TORCH}|{CUDA}",
    "cpp/bindings": rf"{TORCH}|{CUDA}",
    "tests/emulated": rf"{PYTHON}|{TORCH}",
    "cuda": rf"{PYTHON}|{TORCH}",
    "tests/cpp": rf"{PYTHON}|{TORCH}|{CUDA}",
    "tests/cuda": rf"{PYTHON}|{TORCH}",
}
PRIVATE = "cpp/src"  # its headers are named from here, by its own files and by tests
BASES = {  # folder: from where else its files name headers
    PRIVATE: (PRIVATE,),
    "tests/cpp": (PRIVATE,),
    "cuda": ("cpp/bindings",),  # the emulated GPU says how bindings see arrays
    "tests/emulated": ("cuda",),
}
MEETING_PLACES = {"cuda/absent.cpp"}  # files that know every family
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


class Module:
    """One Python file of the package and what it imports."""

    def __init__(self, path: Path, source: Path) -> None:
        parts = path.relative_to(source).with_suffix("").parts
        self.path = path
        self.part = parts[1]
        self.name = ".".join(parts).removesuffix(".__init__")
        self.family = family_in(self.name)
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))

    def imports(self) -> Iterator[tuple[str, ast.stmt]]:
        """Every module named in an import anywhere in the file; `from a import b` names a.b."""
        for node in ast.walk(self.tree):
            yield from _named(node)

    def imports_that_run(self, *, at_start: bool = False) -> Iterator[str]:
        """Those that are not for annotations alone; `at_start`: only those that run with the file itself."""
        pending: list[ast.AST] = list(self.tree.body)
        while pending:
            node = pending.pop()
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if _type_checking(node) or (at_start and later):
                continue
            yield from (name for name, _ in _named(node))
            pending += ast.iter_child_nodes(node)


def family_in(name: str) -> str | None:
    """The family of `ops` that a module belongs to."""
    steps = name.split(".")
    return steps[2] if steps[1:2] == ["ops"] and steps[2:] and steps[2] in FAMILIES else None


def _named(node: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, node) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((f"{'.' * node.level}{node.module or ''}.{alias.name}", node) for alias in node.names)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_problems(modules: list[Module], root: Path) -> Iterator[str]:
    for module in modules:
        where = module.path.relative_to(root)
        if module.part not in BELOW:
            yield f"{where} is in no layer; give `{module.part}` its place in BELOW"
            continue
        for name, node in module.imports():
            at = f"{where}:{node.lineno}"
            if name.startswith("."):
                yield f"{at}: relative import; name the module in full"
            if name.partition(".")[0] != PACKAGE:
                continue
            part = name.split(".")[1] if "." in name else ""
            if part not in {module.part, *BELOW[module.part]}:
                yield f"{at}: `{module.part}` may not import `{name}`"
            foreign = module.part == "ops" and family_in(name) not in (None, module.family)
            if foreign and module.name != f"{PACKAGE}.ops":
                yield f"{at}: may not import `{name}`, which is family {family_in(name)}'s own"


def circle_problems(modules: list[Module], root: Path) -> Iterator[str]:
    runs, named = ({}, {})
    names = {module.name for module in modules} | _stubs(root)
    for module in modules:
        runs[module.name] = resolved(module.imports_that_run(), names)
        named[module.name] = resolved((name for name, _ in module.imports()), names)
    found = [*circles(runs)]
    yield from (f"circle of imports: {' -> '.join(way)}; let one of them know nothing of the next" for way in found)
    for way in circles(named):
        if way not in found:
            print(f"check_layers: for annotations alone, which passes: {' -> '.join(way)}")


def _stubs(root: Path) -> set[str]:
    """Compiled modules, which import nothing of the package."""
    source = root / "python"
    return {".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.pyi")}


def start_problems(modules: list[Module]) -> Iterator[str]:
    """Follows what an import of each of `ALONE` runs."""
    by_name = {module.name: module for module in modules}
    for start in ALONE:
        yield from _reached_problems(by_name, start)


def _reached_problems(by_name: dict[str, Module], start: str) -> Iterator[str]:
    reached, pending = set(), [start]
    while pending:
        name = pending.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        for imported in by_name[name].imports_that_run(at_start=True):
            if imported.partition(".")[0] == PACKAGE:
                steps = imported.split(".")
                pending += [".".join(steps[: i + 1]) for i in range(len(steps))]
            elif imported.partition(".")[0] not in LIGHT:
                yield f"`import {start}` imports {imported.partition('.')[0]}, through {name}"


def include_problems(root: Path) -> Iterator[str]:
    for folder, foreign in FOREIGN.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                continue
            where = path.relative_to(root).as_posix()
            owner = owner_of(path.relative_to(root))
            bases = [path.parent, *(root / base for base in BASES.get(folder, ()))]
            for quote, name in INCLUDE.findall(path.read_text(encoding="utf-8")):
                if re.match(foreign, name):
                    yield f"{where} may not include {name}"
                beside = any((base / name).is_file() for base in bases)
                if quote == '"' and not name.startswith(f"{PACKAGE}/") and not beside:
                    yield f"{where} includes {name}, which is neither a public header nor beside it"
                used = owner_of(PurePath(name))
                if used not in (None, owner) and where not in MEETING_PLACES and not folder.startswith("tests/"):
                    yield f"{where} may not include {name}, which is family {used}'s own"


def main() -> int:
    root = root_argument()
    source = root / "python"
    modules = [Module(path, source) for path in sorted((source / PACKAGE).rglob("*.py"))]
    found = [*import_problems(modules, root), *circle_problems(modules, root), *start_problems(modules)]
    found += include_problems(root)
    return finish(found, f"{len(modules)} modules, {len(FOREIGN)} C++ folders")


if __name__ == "__main__":
    sys.exit(main())
