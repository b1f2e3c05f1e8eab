"""The code in docs/guides/optimizers.md runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import Zoo, train

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "optimizers.md"


def test_the_code_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 200))
    others, matrices = [model[0].bias, model[1].bias], [model[0].weight, model[1].weight]
    names: dict[str, Any] = {"torch": torch, "model": model, "others": others, "matrices": matrices}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        names["optimizer"].step()
    assert [row.projected for row in names["optimizer"].plan()] == [False, False, True, True]
    small = Zoo()
    optimizer = names["SmallMomentsGaLore"](small.parameters(), rank=4)
    train(small, optimizer, range(2))
    assert isinstance(optimizer, GaLoreAdamW)
    assert optimizer.state[small.up.weight]["exp_avg"].dtype == torch.bfloat16
