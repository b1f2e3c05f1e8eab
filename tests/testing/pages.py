"""The fenced blocks and the inline code of the pages that users read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
# The reason stands right above the fence, where it does not show.
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]*\w[^>]*) -->\n\Z")
_INLINE = re.compile(r"`([^`]+)`")
_TIER = re.compile(r"\bD[012]\b")


class Block(NamedTuple):
    """A fenced block: `line` is that of its first line of code, `reason` why it is not run, or None."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code")) + 1
        marker = _NOT_RUN.search(text, 0, fence.start())
        yield Block(page, line, fence["language"], fence["code"], marker["reason"] if marker else None)


def unread(page: Path) -> list[str]:
    """Lines that open or close a fence of another form than `blocks` reads."""
    return re.findall(r"^.*(?:```|~~~).*$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)


def inline(page: Path) -> Iterator[str]:
    """The spans of code within the text, each on one line."""
    for span in _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        yield " ".join(span.split())


def run_python(block: Block, names: dict[str, object]) -> None:
    """Runs a block; a traceback shows the lines of the page."""
    exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), names)


def unexplained_tiers(text: str) -> set[str]:
    """The tiers of determinism whose first mention does not say in brackets what they are."""
    first: dict[str, int] = {}
    for mention in _TIER.finditer(text):
        first.setdefault(mention[0], mention.end())
    return {tier for tier, end in first.items() if not re.match(r"\s*\(\w", text[end:])}
