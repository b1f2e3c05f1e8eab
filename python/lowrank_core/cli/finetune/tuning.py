"""A run of `finetune`: the training loop of `train` with another model, other data and another loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import CHECKPOINT_SUFFIX
from lowrank_core.cli.finetune.adapted import Adapted
from lowrank_core.cli.finetune.config import FILTERS, FinetuneConfig
from lowrank_core.cli.finetune.methods import place
from lowrank_core.cli.finetune.pretrained import Pretrained
from lowrank_core.cli.finetune.rows import Parted
from lowrank_core.cli.finetune.tasks import Task, mean_loss, right
from lowrank_core.cli.loop import Run, grad_scaler
from lowrank_core.cli.metrics import MetricsLog
from lowrank_core.cli.optimizers import state_bytes
from lowrank_core.cli.text import Corpus
from lowrank_core.optim.seeds import mix_seed


class Tuning(Run):
    """Trains an adapter of `pretrained` by the method of `config`; steps, checkpoints and log are those of `Run`."""

    def __init__(self, config: FinetuneConfig, data: Parted, pretrained: Pretrained, task: Task, folder: Path) -> None:
        self.name = config.method
        self.path = folder / (self.name + CHECKPOINT_SUFFIX)
        self._config = cast(TrainConfig, config)  # it has all that the loop reads
        self._tuned = config
        self._corpus = cast(Corpus, data)  # of which a checkpoint keeps the digest
        self._task = task
        self._batches = task.validation()
        self.optimizer, self._ranks = place(pretrained.model, config, pretrained.heads)
        self.model = cast(Any, Adapted(pretrained.model.train()))
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._scaler = cast(Any, FilterStep() if self.name in FILTERS else grad_scaler(config.precision))
        self._base = pretrained.sha256
        self.progress: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "val_loss": None, "best_val_loss": None, "refreshes": 0, "accuracy": None,
            "best_accuracy": None, "ranks": None, "base": self._base,
        }  # fmt: skip

    @property
    def inner(self) -> Any:
        """The pretrained model with its adapter."""
        return self.model.inner

    def evaluate(self, log: MetricsLog) -> float:
        """Mean validation loss (nats) over the held-out samples; remembers it, and the share that is right."""
        self.model.eval()
        total, hits, count = 0.0, 0, 0
        with torch.no_grad(), self._autocast():
            for inputs, targets in self._batches:
                logits = self.model(inputs)
                total += float(mean_loss(logits, targets).double()) * targets.numel()
                hits, count = hits + right(logits, targets), count + targets.numel()
        self.model.train()
        loss, accuracy = total / count, hits / count
        best, most = self.progress["best_val_loss"], self.progress["best_accuracy"]
        self.progress.update(
            val_loss=loss, best_val_loss=loss if best is None else min(best, loss), accuracy=accuracy,
            best_accuracy=accuracy if most is None else max(most, accuracy),
        )  # fmt: skip
        self._log(log, "eval", val_loss=loss, accuracy=accuracy)
        if self.progress["ranks"] is None:
            self._log_refresh(log)
        return loss

    def restore(self) -> None:
        """As of `Run`; the pretrained model must be the same."""
        super().restore()
        if self.progress["base"] != self._base:
            raise CliError(
                f"the model in '{self._tuned.model}' has changed since '{self.path}' was written; put the right one in "
                "its place, or start a new run"
            )

    def summary(self) -> dict[str, Any]:
        """One row of the table: loss in nats, share that is right, CPU seconds of training steps."""
        keys = ("val_loss", "best_val_loss", "accuracy", "best_accuracy", "seconds", "ranks")
        return {
            "optimizer": self.name,
            "lr": self._tuned.peak_lrs(self.name)[0],
            **{key: self.progress[key] for key in keys},
            "samples": self.step * self._tuned.bytes_per_step,
            "trained": sum(p.numel() for p in self.inner.parameters() if p.requires_grad),
            "state_bytes": state_bytes(self.optimizer),
            "seconds_per_step": self.progress["seconds"] / self.step,
        }

    def _backward(self, step: int) -> float:
        """Leaves the gradients of the step's batch, or what a filter steps by; returns its mean loss."""
        if isinstance(self._scaler, FilterStep):
            (loss,) = self._losses(step)
            return float(loss.detach())
        return super()._backward(step)

    def _losses(self, step: int) -> Iterator[Tensor]:
        torch.manual_seed(mix_seed(self._tuned.seed, step) % 2**63)  # of dropout: a resume needs no state
        parts = self._tuned.accumulation
        for part in range(1, parts + 1):
            inputs, targets = self._task.training((step - 1) * parts + part)
            with self._autocast():
                logits = self.model(inputs)
            if isinstance(self._scaler, FilterStep):
                self._scaler.seen = logits, targets
            yield mean_loss(logits, targets)

    def _diverged(self, step: int, loss: float, norm: float) -> CliError:
        if self.name not in FILTERS:
            return super()._diverged(step, loss, norm)
        return CliError(
            f"{self.name} diverged at step {step} (loss {loss:g}); lower `--p0`, as to 0.001, or `--kl-limit`, and "
            "start a new run"
        )

    def _log(self, log: MetricsLog, event: str, **values: Any) -> None:
        named = {_NAMES.get(name, name): value for name, value in values.items()}
        named.pop("lr_others", None)
        if self.name in FILTERS:
            named.pop("grad_norm", None)
        super()._log(log, event, samples=self.step * self._tuned.bytes_per_step, **named)

    def _log_refresh(self, log: MetricsLog) -> None:
        """Logs the ranks if this step changed one."""
        ranks = self._ranks() if self._ranks else {}
        if ranks != (self.progress["ranks"] or {}):
            self.progress["ranks"] = ranks
            self._log(log, "ranks", ranks=ranks)


_NAMES = {"tokens_per_s": "samples_per_s"}


class FilterStep:
    """What stands in the place of a GradScaler where the optimizer steps by outputs and targets, not by gradients."""

    seen: tuple[Tensor, Tensor] | None = None

    def is_enabled(self) -> bool:
        """Nothing is scaled."""
        return False

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is scaled."""

    def step(self, optimizer: Any) -> None:
        """Steps, and lets go of the graph."""
        seen, self.seen = self.seen, None
        optimizer.step(*(seen or ()))

    def update(self) -> None:
        """Nothing is scaled."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}
