"""docs/architecture.md is true: its paths and names exist, its layers are those that are checked, and a step makes the
calls that it lists, in that order."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from types import FrameType

import pytest

pytest.importorskip("torch")

import lowrank_core.optim
import torch
from lowrank_core.ops.operators import torch_ops
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.torch_rounding import torchs_rounding
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "lowrank_core"
PAGE = ROOT / "docs" / "architecture.md"
sys.path.insert(0, str(ROOT / "tools"))
from check_families import FAMILIES  # noqa: E402
from check_layers import BELOW  # noqa: E402

WORDS = {
    "slot", "bucket", "draft", "state", "layout", "field", "role", "geometry", "projector", "subspace", "turn",
    "residual", "rule", "codec", "schedule", "transport", "refresh", "gate", "kernel", "composition", "family",
    "operator", "level",
}  # fmt: skip
_SPAN = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w.<>-]+(?:/[\w.<>-]+)*(?:/|\.(?:py|pyi|h|cpp|cu|md|json))")
_CALL = re.compile(r"([A-Za-z_][\w.]*)\(\)")


def spans(text: str) -> list[str]:
    return _SPAN.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def sections() -> dict[str, str]:
    """The text below each heading of the second level."""
    _, *parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(text: str) -> list[list[str]]:
    """The cells of each row, without the heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def found(span: str) -> list[Path]:
    """The files or folders that a path of the page means, from the root or from the package: one, or one a family."""
    stems = FAMILIES if "<stem>" in span else ("",) if span else ()
    paths = [base / span.replace("<stem>", stem) for stem in stems for base in (ROOT, PACKAGE)]
    return [path for path in paths if path.exists()]


@lru_cache
def defined(path: Path) -> set[str]:
    """What a Python file defines: functions, classes and values by their names, methods as `Class.method`."""

    def names(body: list[ast.stmt], owner: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield owner + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{owner}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (owner + target.id for target in targets if isinstance(target, ast.Name))

    return set(names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def defines(path: Path, name: str) -> bool:
    if path.suffix == ".py":
        return name in defined(path)
    return re.search(rf"(\bclass |\bstruct |[\w>&*]\s+){name}\b", path.read_text(encoding="utf-8")) is not None


def calls(text: str) -> Iterator[tuple[str, str]]:
    """(path, function) for every `function()` of a text; its file is the last one named before it."""
    path = ""
    for span in spans(text):
        if _PATH.fullmatch(span):
            path = span
        elif call := _CALL.fullmatch(span):
            yield path, call[1]


# ---- names ---------------------------------------------------------------------------------------------------------


def test_every_path_is_there() -> None:
    paths = [span for span in spans(PAGE.read_text(encoding="utf-8")) if _PATH.fullmatch(span)]
    assert len(paths) > 100
    assert [path for path in paths if len(found(path)) != (len(FAMILIES) if "<stem>" in path else 1)] == []


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (PAGE.parent / link).exists()]


def test_every_function_is_in_its_file() -> None:
    paragraphs = re.split(r"\n\n|\n(?=\|)", PAGE.read_text(encoding="utf-8"))  # each row of a table is one
    named = [pair for paragraph in paragraphs for pair in calls(paragraph)]
    assert len(named) > 60
    assert not [(path, name) for path, name in named if not any(defines(file, name) for file in found(path))]


def test_every_word_is_defined_where_it_says() -> None:
    rows = table(sections()["Words"])
    assert {row[0] for row in rows} >= WORDS
    for word, meaning, where in rows:
        name, path = spans(where)
        (file,) = found(path)
        assert defines(file, name) and meaning, word


# ---- folders, layers, documents ------------------------------------------------------------------------------------


def is_source(folder: Path) -> bool:
    """Whether a folder is one that git keeps; of those that start with a dot, the checks of a change alone."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    patterns = {pattern.strip("/") for pattern in ignored}
    return folder.name == ".ci" or not (folder.name[0] == "." or any(fnmatch(folder.name, p) for p in patterns))


def test_every_folder_is_named() -> None:
    tops = [ROOT, ROOT / "cpp", ROOT / "cpp" / "src", ROOT / "tests"]
    folders = {path for top in tops for path in top.iterdir() if path.is_dir() and is_source(path)}
    folders |= {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    named = {path for span in spans(PAGE.read_text(encoding="utf-8")) for path in found(span) if "/" in span}
    around = {parent for path in named if path.is_dir() for parent in path.parents}
    assert len(folders) > 20 and sorted(folders - named - around) == []


def test_the_picture_has_the_layers_that_are_checked() -> None:
    """Every part of the package, and whatever it may import on a lower line."""
    picture = re.search(r"```text\n(.*?)```", sections()["Layers"], re.DOTALL)
    assert picture is not None
    lines = {word: i for i, line in enumerate(picture[1].splitlines()) for word in line[:29].split()}
    assert lines.keys() >= BELOW.keys()
    lines["__version__"] = lines["__init__"]
    assert [(one, other) for one, below in BELOW.items() for other in below if lines[other] <= lines[one]] == []


def test_every_document_is_linked() -> None:
    entries = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", PAGE]
    text = {path: path.read_text(encoding="utf-8") for path in entries}
    docs = ROOT / "docs"
    linked = {(path.parent / link).resolve() for path in entries for link in re.findall(r"\]\(([^)#:]+)\)", text[path])}
    pages = {*docs.glob("*.md"), *docs.glob("guides/*.md"), *docs.glob("adr/*.md")}
    assert sorted(pages - linked) == []


# ---- the way of one gradient ---------------------------------------------------------------------------------------

Call = tuple[str, str]  # file, relative to the package; function


def trace(step: Callable[[], object]) -> list[Call]:
    """Every call of a function of the package, in order."""
    seen: list[Call] = []
    base = str(Path(lowrank_core.optim.__file__).parents[1]) + "/"

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(base):
            seen.append((code.co_filename.removeprefix(base), code.co_qualname))

    sys.setprofile(watch)
    try:
        step()
    finally:
        sys.setprofile(None)
    return seen


def weights() -> dict[str, tuple[nn.Parameter, int | None]]:
    """A weight that is stepped in each way, and its rank."""
    torch.manual_seed(0)
    image = torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last)
    return {
        "fused": (nn.Parameter(torch.randn(24, 32)), 4),
        "composed": (nn.Parameter(image), 4),
        "plain": (nn.Parameter(torch.randn(24, 32)), None),
    }


def traces(way: str) -> dict[frozenset[str], list[Call]]:
    """The calls of three steps, by what holds for them."""
    weight, rank = weights()[way]
    optimizer = GaLoreAdamW([weight], rank=rank, update_proj_gap=2)
    kinds = [{"first", "refresh"}, {"between"}, {"warm", "refresh"}] if rank else [{"first"}, set()]
    done = {}
    for kind in kinds:
        weight.grad = torch.randn_like(weight)
        done[frozenset({way, *kind})] = trace(optimizer.step)
    return done


def holds(cell: str, facts: frozenset[str]) -> bool:
    """`all`, or alternatives between commas, each of facts joined by `and`."""
    return any(one == "all" or facts >= set(one.split(" and ")) for one in cell.split(", "))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a frame does not know the class of its function")
@pytest.mark.parametrize("way", ["fused", "composed", "plain"])
def test_a_step_makes_the_calls_that_are_listed(way: str) -> None:
    torch_ops()  # what the first tensor registers is no part of a step, nor what is found once in a process
    torchs_rounding()
    text = sections()["The way of one gradient"]
    rows = [(list(calls(cell)), steps) for cell, _, steps in table(text)]
    files = {path for span in spans(text) if _PATH.fullmatch(span) for path in found(span)}
    named = {str(path.relative_to(PACKAGE)) for path in files if PACKAGE in path.parents}
    for facts, made in traces(way).items():
        listed = [call for cell, steps in rows if holds(steps, facts) for call in cell]
        rest = iter(made)
        for call in listed:
            assert call in rest, f"{sorted(facts)}: {call} is not called, or not after what is listed before it"
        others = {call for cell, steps in rows for call in cell} - set(listed)
        assert sorted(others & set(made)) == [], f"{sorted(facts)}: called, and not listed for these steps"
        assert sorted({path for path, _ in made} - named) == [], f"{sorted(facts)}: passed, and not named"
        passed = re.search(r"between refreshes passes (\d+) files of the package, one with a warm refresh (\d+)", text)
        assert passed is not None
        for kind, count in zip(({"between"}, {"warm", "refresh"}), passed.groups(), strict=True):
            assert facts != {"fused", *kind} or int(count) == len({path for path, _ in made})
