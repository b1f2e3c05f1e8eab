"""Lines of a shell as they stand in the pages: the cheap ones run, of the others every name is looked up."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lowrank_core.cli import main
from lowrank_core.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
_PLACEHOLDER = re.compile(r"<[^>]*>|\bSTEM\b")
_COMMAND = re.compile(r"(make|python|pip install|[A-Z_]+=\S+ python) ")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_VARIABLE = re.compile(r"[A-Z_]+=")
# What makes a run short. An option that the page itself gives stays as it is there, but for the number of steps.
_BRIEF = {"--seq-len": "16", "--rank": "4", "--batch-size": "2", "--warmup": "1", "--eval-every": "2", "--threads": "1"}
_SHORT = {
    "train": {"--dim": "16", "--layers": "1", "--heads": "2", "--ffn": "24", "--eval-batches": "1", **_BRIEF},
    "finetune": {"--eval-samples": "4", **_BRIEF},
}


class Command(NamedTuple):
    """The words of a command, without variables set before it, and the numbers in the comment behind it."""

    words: list[str]
    numbers: list[str]


def commands(code: str) -> Iterator[Command]:
    """Every command of a block."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(_PLACEHOLDER.sub("PLACEHOLDER", line), comments=True)
        while words and _VARIABLE.match(words[0]):
            words = words[1:]
        if words:
            yield Command(words, _NUMBER.findall(line.partition(" # ")[2]))


def run(command: Command) -> None:
    """Runs a command of ours in the current folder, short where it trains; of any other checks the names."""
    words = command.words
    if words[0] != "lowrank-core":
        return check(words)
    _make_texts(words)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main(_shortened(words[1:]))
        except SystemExit as left:  # --help leaves like this
            code = int(left.code or 0)
    assert code == 0, f"{shlex.join(words)} ended with {code}"
    for number in command.numbers:
        assert number in out.getvalue(), f"{shlex.join(words)} does not print {number}, but {out.getvalue()}"


def check(words: list[str]) -> None:
    """Asserts that the targets, files, extras and options that a command names are there."""
    program = Path(words[0]).name
    assert program in _CHECKS, f"nothing is known of `{program}`; teach tests/testing/commands.py what it names"
    _CHECKS[program](words[1:])


def check_span(span: str) -> None:
    """Asserts the same of inline code: a command, of ours without the values of its options, an option, or a file."""
    if span.startswith("lowrank-core "):
        known = options_of(build_parser()) | {"lowrank-core", *_names_of(build_parser())}
        for word in span.split():
            assert word in known or not re.match(r"--|[a-z]+$", word), f"lowrank-core knows no `{word}`"
    elif _COMMAND.match(span):
        for command in commands(span):
            check(command.words)
    elif re.fullmatch(r"--[a-z][a-z-]+", span):
        assert span in options_of(build_parser()), f"lowrank-core has no option `{span}`"
    elif re.fullmatch(r"(docs|bench|tools|tests|python|cpp|cuda|examples)/[\w./-]+", span):
        assert (ROOT / span).exists(), f"there is no `{span}`"


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of its commands."""
    return set(parser._option_string_actions).union(*map(options_of, _commands_of(parser).values()))


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _names_of(parser: argparse.ArgumentParser) -> set[str]:
    """Of commands, of commands of commands, and of what their options choose from."""
    below = _commands_of(parser)
    chosen = {str(choice) for action in parser._actions for choice in action.choices or ()}
    return chosen.union(below, *map(_names_of, below.values()))


def _make_texts(words: list[str]) -> None:
    """What a reader's own files are to `--text`."""
    for name in _values(words, "--text") if words[1] == "train" else []:
        path = Path(name)
        files = [path / f"{i}.txt" for i in range(12)] if name.endswith("/") else [path]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{file} holds a reader's own words. " * 100)


def _values(words: list[str], option: str) -> list[str]:
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))]


def _shortened(words: list[str]) -> list[str]:
    """The words, for a run of 4 steps, which a later command may resume for 8."""
    if words[0] not in _SHORT or "--help" in words:
        return words
    given = {word for word in words if word.startswith("--")}
    if "--steps" in given:
        at = words.index("--steps") + 1
        words = [*words[:at], "8" if "--resume" in given else "4", *words[at + 1 :]]
    if "--resume" in given:  # has its own options
        return words
    if "adamw" in _values(words, "--optimizer"):  # which has no rank
        given.add("--rank")
    return words + [
        word for pair in {"--steps": "4", **_SHORT[words[0]]}.items() if pair[0] not in given for word in pair
    ]


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(word.split("=", 1) for word in words if _VARIABLE.match(word))
    targets = [word for word in words if not _VARIABLE.match(word) and not word.startswith("-")]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make has no target `{target}`"
    for variable in variables:
        assert f"$({variable})" in makefile or f"{variable} ?=" in makefile, f"make knows no `{variable}`"
    arguments = shlex.split(variables.get("ARGS", ""))
    if targets == ["train"]:
        _check_own(["train", *arguments])
    elif targets == ["test"]:
        _check_files(arguments)


def _check_own(words: list[str]) -> None:
    try:
        build_parser().parse_args(words)
    except SystemExit as left:
        assert not left.code, f"lowrank-core does not take `{shlex.join(words)}`"


def _check_pip(words: list[str]) -> None:
    assert words[0] == "install", f"pip {words[0]} stands in a page"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"there is no extra `{extra}`"
    for word in words[1:]:
        assert word.startswith((".", "-", "lowrank_core", "lowrank-core", "dist/")), f"pip installs `{word}`"


def _check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "lowrank_core"]:
        return _check_own(words[2:])
    if words[:1] != ["-m"]:
        _check_files(words[:1])
        source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / words[0]).parent.glob("*.py"))
        for word in words:
            assert not word.startswith("--") or f'"{word}"' in source, f"{words[0]} has no option `{word}`"


def _check_files(words: list[str]) -> None:
    for word in words:
        assert "/" not in word or (ROOT / word).exists(), f"there is no `{word}`"


def _check_pre_commit(words: list[str]) -> None:
    assert (ROOT / ".pre-commit-config.yaml").exists() and words == ["install"]


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "lowrank-core": _check_own,
    "make": _check_make,
    "pip": _check_pip,
    "pre-commit": _check_pre_commit,
    "python": _check_python,
}
