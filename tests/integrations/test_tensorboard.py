"""TensorBoard: what the monitor writes is what TensorBoard reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def test_every_number_arrives(tmp_path: Path) -> None:
    layer = nn.Linear(12, 8)
    optimizer = GaLoreAdamW(layer.named_parameters(), lr=0.01, rank=3, update_proj_gap=2)
    with SummaryWriter(str(tmp_path)) as writer, Monitor(optimizer, writer=writer) as monitor:
        for step in range(3):
            optimizer.zero_grad()
            layer(torch.full((4, 12), 1.0 + step)).square().mean().backward()
            optimizer.step()
    seen = EventAccumulator(str(tmp_path)).Reload()
    found = {(tag, e.step): e.value for tag in seen.Tags()["scalars"] for e in seen.Scalars(tag)}
    expected = {
        (f"weight/{key}", row["step"]): value
        for row in monitor.rows
        for key, value in row.items()
        if key not in ("step", "name") and value is not None
    }
    assert found == pytest.approx(expected, rel=torch.finfo(torch.float32).eps) and len(expected) == 3 * 5 + 1
