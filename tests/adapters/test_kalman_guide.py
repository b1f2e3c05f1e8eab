"""The code in docs/guides/kalman.md runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "kalman.md"


def test_the_code_of_the_guide_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
    assert names["taken"] is True and all(bool((p <= 0.03).all()) for p in names["variances"])
