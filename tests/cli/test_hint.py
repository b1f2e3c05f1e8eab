"""The command printed to go on with can be pasted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lowrank_core.cli.hint import command_line, shell_word


@pytest.mark.parametrize(
    "name", [b"plain", b"two words", b"it's", b"\xff\xc3\xa9'\\ x", b"new\nline", "ü".encode(), b"$HOME"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_name_survives_the_shell(name, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    word = shell_word(os.fsdecode(name))
    word.encode(encoding)  # can be printed
    assert "\n" not in word
    assert subprocess.run([b"bash", b"-c", b"printf %s " + os.fsencode(word)], capture_output=True).stdout == name


def test_program_is_named_as_it_can_be_found(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "lowrank-core"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/lowrank-core", "train"])
    assert command_line("train", "a b") == f"{script} train 'a b'"  # as `make train` starts it
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    assert command_line("train") == "lowrank-core train"
    monkeypatch.setattr(sys, "argv", [str(Path(__file__).parents[2] / "lowrank_core" / "__main__.py")])
    assert command_line("train") == f"{sys.executable} -m lowrank_core train"
