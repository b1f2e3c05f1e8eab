"""The code in docs/guides/chained-gradients.md runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "chained-gradients.md"


def test_the_code_of_the_guide_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
    assert names["step"].u.shape[1] <= 12
