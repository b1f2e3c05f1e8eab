"""Commands to go on with, in words that can be pasted into a shell in any folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

PROGRAM = "lowrank-core"


def command_line(*arguments: str) -> str:
    """`arguments` behind the words that start this very program."""
    return " ".join(map(shell_word, (*_program(), *arguments)))


def shell_word(text: str) -> str:
    """`text` quoted for a shell; where the terminal cannot show it, byte by byte as bash, ksh and zsh read it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        shown = text.isprintable()
    except UnicodeEncodeError:
        shown = False
    if shown:
        return shlex.quote(text)
    plain = (chr(b) if 32 <= b < 127 and b not in b"\\'" else f"\\{b:03o}" for b in os.fsencode(text))
    return f"$'{''.join(plain)}'"


def _program() -> tuple[str, ...]:
    """`lowrank-core` where the shell finds this one by that name, else its path; or `python -m lowrank_core`."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py" or not script.is_file():
        return (sys.executable, "-m", "lowrank_core")
    found = shutil.which(PROGRAM)
    if found is not None and os.path.samefile(found, script):
        return (PROGRAM,)
    return (os.path.abspath(script),)
