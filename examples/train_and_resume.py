"""One line instead of AdamW: less state, an ordinary loop, and a checkpoint that goes on with the same bits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, param_groups
from torch import nn

STEPS = 100


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    # optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    groups = param_groups(model, rank=8, update_proj_gap=10, scale=1.0, verbose=False)
    return model, GaLoreAdamW(groups, lr=1e-2, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Learns to reverse a vector; the batch is a function of the step. Returns the last loss."""
    loss = torch.tensor(0.0)
    for step in steps:
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return loss.item()


def main() -> None:
    model, optimizer = build()
    start = train(model, optimizer, range(1))
    end = train(model, optimizer, range(1, STEPS))
    assert isinstance(optimizer, GaLoreAdamW)
    adamw = estimate_state_bytes(model, "adamw")
    print(f"loss {start:.3f} -> {end:.3f}; state {optimizer.state_bytes():,} bytes, AdamW's {adamw:,}")

    other, resumed = build()
    train(other, resumed, range(STEPS // 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        torch.save({"model": other.state_dict(), "optimizer": resumed.state_dict()}, path)
        other, resumed = build()
        checkpoint = torch.load(path, weights_only=True)
    other.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint["optimizer"])
    train(other, resumed, range(STEPS // 2, STEPS))
    same = all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    print(f"stopped at step {STEPS // 2} and resumed: {'the same bits' if same else 'other weights'}")


if __name__ == "__main__":
    main()
