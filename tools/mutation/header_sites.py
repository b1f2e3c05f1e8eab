"""All places of a C++ header that generic operators of mutation can change.

Changed are the bodies of functions for host and device (`LRC_HD`) and of those that are inlined into level files
(`LRC_INLINE`). Left out are comments, texts, preprocessor lines and what they leave out of a build of the generic
level, static_assert, and declarations of types and templates. A call is skipped where it is a statement, or has one
argument and converts no type. No argument is dropped: that seldom compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from mutation.mutant import Mutant, Site

_NUMBER = re.compile(r"(?<![\w.])(?:0x[0-9A-Fa-f']+|\d[\d']*(?:\.\d*)?(?:e[-+]?\d+)?)([fuUlL]*)(?![\w.])")
_COMMENT = re.compile(r'//[^\n]*|"(?:[^"\\\n]|\\.)*"')
_FUNCTION = re.compile(r"\b(?:LRC_HD|LRC_INLINE)\b[^;{]*\{")
_LEFT_OUT = re.compile(r"^\s*(?:template\b|static_assert|using\b|typedef\b|alignas|friend\b|enum\b|struct\b|class\b)")
_OTHER: dict[str, dict[str, tuple[str, ...]]] = {
    "comparison": {
        "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",),
        "&&": ("||",), "||": ("&&",),
    },
    "arithmetic": {
        "+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("*",), "+=": ("-=",), "-=": ("+=",), "*=": ("/=",),
        "<<": (">>",), ">>": ("<<",), "&": ("|",), "|": ("&",), "^": ("|",), "^=": ("|=",),
    },
}  # fmt: skip
_SIGN = re.compile(r"(?<=[(,=?:{] )-(?=[\w(])|(?<=[({])-(?=[\w(])|(?<=return )-(?=[\w(])")
_UNARY_CALL = re.compile(
    r"(?<!:)\b(?!(?:if|for|while|switch|sizeof|return|float|double|u?int\w*)\b)([a-z_]\w*)\(([^(),;]+)\)(?! *\{| const)"
)
_STATEMENT = re.compile(r"^( *)([a-z_][\w:.>-]*(?:<[^;<>]*>)?\([^;]*\));$", re.M)


def sites(path: str, source: str) -> Iterator[Site]:
    """Every place of `source` that an operator can change."""
    code = _masked(source)
    for kind, start, end, new in _changes(code):
        if _is_live(code, start, end):
            yield Site(path, kind, start, end, partial(Mutant(path, kind, start, end, new).applied, source))


def _changes(code: str) -> Iterator[tuple[str, int, int, str]]:
    """Kind, start, end and what comes in place."""
    for found in _NUMBER.finditer(code):
        yield "constant", *found.span(), _other_number(found)
    for kind, table in _OTHER.items():
        for old, others in table.items():
            for found in re.finditer(rf"(?<= ){re.escape(old)}(?= )", code):
                for new in others:
                    yield kind, *found.span(), new
    for found in _SIGN.finditer(code):
        yield "sign", *found.span(), ""
    for word, other in (("true", "false"), ("false", "true")):
        for found in re.finditer(rf"\b{word}\b", code):
            yield "constant", *found.span(), other
    for found in _UNARY_CALL.finditer(code):
        yield "call", *found.span(), f"({found.group(2)})"
    for found in _STATEMENT.finditer(code):
        yield "call", found.start(2), found.end(), ";"


def _other_number(found: re.Match[str]) -> str:
    """The number plus one."""
    text, suffix = found.group(), found.group(1)
    digits = text.removesuffix(suffix).replace("'", "") if suffix and not text.startswith("0x") else text
    if digits.startswith("0x"):
        suffix = "".join(re.findall(r"[uUlL]+$", digits))
        return f"0x{int(digits.removesuffix(suffix).replace(chr(39), ''), 16) + 1:X}{suffix}"
    return f"{float(digits) + 1!r}{suffix}" if re.search(r"[.e]", digits) else f"{int(digits) + 1}{suffix}"


def _masked(source: str) -> str:
    """`source` with blanks in place of comments, texts, and all that a build of one level does not see."""
    masked = _COMMENT.sub(lambda found: " " * len(found.group()), source)
    lines, off = [], [False]
    for line in masked.split("\n"):
        word = line.split()[0] if line.startswith("#") else ""
        if word == "#if":
            off.append("__AVX" in line or "__FMA__" in line or "__F16C__" in line or "__aarch64__" in line)
        elif word in ("#elif", "#else"):
            off[-1] = "__AVX" in line or "__FMA__" in line or "__aarch64__" in line
        elif word == "#endif":
            off.pop()
        silent = word or any(off) or _LEFT_OUT.match(line)
        lines.append(" " * len(line) if silent else line)
    return "\n".join(lines)


def _is_live(code: str, start: int, end: int) -> bool:
    """True inside the body of one of the functions that are changed."""
    return any(first <= start and end <= last for first, last in _bodies(code))


def _bodies(code: str) -> list[tuple[int, int]]:
    """From the opening to the closing brace."""
    heads = [found.end() - 1 for found in _FUNCTION.finditer(code)]
    return [(head, _closing(code, head)) for head in heads]


def _closing(code: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(code)):
        depth += {"{": 1, "}": -1}.get(code[at], 0)
        if depth == 0:
            return at
    return len(code)
