"""Lightning: automatic and manual optimization against a loop by hand, and resumed from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_cases import examples, tiny_llama
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lowrank_core.optim import GaLoreAdamW, fused_backward, param_groups
from torch import Tensor
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future
MAX, PASSES, BATCHES = 0.5, 2, 8  # norm to clip to; backward passes of a step; batches of an epoch


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def optimizer_of(model: Any) -> tuple[GaLoreAdamW, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = GaLoreAdamW(param_groups(model, rank=4, update_proj_gap=3, verbose=False), lr=0.02)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)


class Module(LightningModule):
    def __init__(self, manual: bool, fusing: bool) -> None:
        super().__init__()
        self.model = tiny_llama()
        self.automatic_optimization = not manual
        self.fusing = fusing
        self.losses: list[float] = []

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = optimizer_of(self.model)
        if self.fusing:
            fused_backward(self.model, optimizer, max_norm=MAX)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor | None:
        loss: Tensor = self.model(**batch).loss
        self.losses.append(loss.item())
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss / PASSES)
        if index % PASSES == PASSES - 1:
            optimizer = self.optimizers()
            if not self.fusing:
                self.clip_gradients(optimizer, gradient_clip_val=MAX, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()
        return None


def data() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(examples(4 * BATCHES), batch_size=4)  # type: ignore[arg-type]


def fit(folder: Path, epochs: int, manual: bool, fusing: bool, resume: str | None = None) -> tuple[Module, str]:
    """The module after `epochs`, and its last checkpoint."""
    module, checkpoints = Module(manual, fusing), ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1)
    own: dict[str, Any] = {} if manual else {"accumulate_grad_batches": PASSES}
    own |= {} if manual or fusing else {"gradient_clip_val": MAX}
    still: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[checkpoints], **still, **own)
    trainer.fit(module, data(), ckpt_path=resume)
    assert trainer.global_step == epochs * BATCHES // PASSES
    return module, checkpoints.best_model_path


def by_hand(epochs: int, fusing: bool) -> tuple[Any, list[float]]:
    model = tiny_llama()
    optimizer, schedule = optimizer_of(model)
    if fusing:
        fused_backward(model, optimizer, max_norm=MAX)
    losses = []
    for _ in range(epochs):
        for number, batch in enumerate(data()):
            loss = model(**batch).loss
            losses.append(loss.item())
            (loss / PASSES).backward()
            if number % PASSES == PASSES - 1:
                if not fusing:
                    # In the order in which Lightning adds norms up.
                    params = [param for group in optimizer.param_groups for param in group["params"]]
                    torch.nn.utils.clip_grad_norm_(params, MAX)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize("fusing", [False, True])
@pytest.mark.parametrize("manual", [False, True])
def test_it_has_the_bits_of_a_loop_by_hand_and_resumes_to_them(manual: bool, fusing: bool, tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", 2, manual, fusing)
    model, losses = by_hand(2, fusing)
    assert whole.losses == losses and sum(losses[-4:]) < 0.9 * sum(losses[:4])
    _, checkpoint = fit(tmp_path / "broken", 1, manual, fusing)
    resumed, _ = fit(tmp_path / "resumed", 2, manual, fusing, resume=checkpoint)
    assert resumed.losses == losses[BATCHES:]
    for (name, one), *others in zip(
        model.named_parameters(), whole.model.parameters(), resumed.model.parameters(), strict=True
    ):
        assert all(torch.equal(one, other) for other in others), name
