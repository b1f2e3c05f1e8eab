"""One optimizer's run: its model, its steps, its validation, its checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lowrank_core.cli import checkpoint
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.data import training_batch, validation_windows
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import CHECKPOINT_SUFFIX
from lowrank_core.cli.metrics import MetricsLog
from lowrank_core.cli.model import Decoder, ModelShape, next_byte_loss
from lowrank_core.cli.optimizers import build_optimizer, state_bytes, subspaces
from lowrank_core.cli.options import difference
from lowrank_core.cli.sample import LENGTH, PROMPT, TEMPERATURE, as_text, continuation
from lowrank_core.cli.text import Corpus
from lowrank_core.optim import estimate_state_bytes

Build = Callable[[str, nn.Module, TrainConfig], torch.optim.Optimizer]  # as `build_optimizer`
AUTOCAST = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}


def grad_scaler(precision: str) -> torch.amp.GradScaler:
    """Of the loss: only float16 needs it; disabled, it hands everything through."""
    return torch.amp.GradScaler("cpu", enabled=precision == "amp-fp16")


def lr_at(step: int, *, peak: float, warmup: int, steps: int, min_ratio: float) -> float:
    """Learning rate of step 1..`steps`: linear to `peak` at `warmup`, then a cosine to `peak * min_ratio`."""
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / (steps - warmup)
    return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * done)) / 2)


class Run:
    """Trains one model with the optimizer `name`, or with what `build` makes in its place.

    `progress` is all that is neither model nor optimizer.
    """

    def __init__(
        self, name: str, config: TrainConfig, corpus: Corpus, folder: Path, build: Build | None = None
    ) -> None:
        self.name = name
        self.path = folder / (name + CHECKPOINT_SUFFIX)
        self._config = config
        self._corpus = corpus
        shape = ModelShape(config.dim, config.layers, config.heads, config.ffn or 0, config.seq_len)
        self.model = Decoder(shape, seed=config.seed)
        if config.precision == "bf16":
            self.model.bfloat16()
        self._adamw = estimate_state_bytes(self.model, optimizer="adamw")  # before anything is frozen
        self.optimizer = (build or build_optimizer)(name, self.model, config)
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._scaler = grad_scaler(config.precision)
        count = config.eval_batches * config.batch_size
        self._validation = validation_windows(corpus.val, count=count, window=config.window)
        self.progress: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "val_loss": None, "best_val_loss": None, "refreshes": 0,
        }  # fmt: skip

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.progress["step"])

    def train_step(self, log: MetricsLog) -> tuple[float, float]:
        """Does the next step and logs it; returns its loss and its tokens (bytes) per second.

        Raises:
          CliError: the loss or the gradient is not finite; nothing was updated.
        """
        started, computed = time.perf_counter(), time.process_time()
        step = self.step + 1
        self._set_lrs(step)
        loss = self._backward(step)
        self._scaler.unscale_(self.optimizer)
        norm = float(clip_grad_norm_(self.model.parameters(), self._config.clip or math.inf))
        # GradScaler meets infinite gradients by design and skips them; else they mean the run is lost.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._scaler.is_enabled()):
            raise self._diverged(step, loss, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # Of the processor: neither a stop nor what other programs take of it counts.
        computed = time.process_time() - computed
        self.progress.update(step=step, seconds=self.progress["seconds"] + computed)
        speed = self._config.bytes_per_step / (time.perf_counter() - started)
        lr, others = (self._lr_at(step, peak) for peak in self._config.peak_lrs(self.name))
        self._log(log, "train", train_loss=loss, lr=lr, lr_others=others, grad_norm=norm, tokens_per_s=speed)
        self._log_refresh(log)
        return loss, speed

    def evaluate(self, log: MetricsLog) -> float:
        """Mean validation loss (nats per byte) over the fixed windows; remembers the best."""
        self.model.eval()
        with torch.no_grad():
            losses = [self._loss(part).double() for part in self._validation.chunk(self._config.eval_batches)]
        self.model.train()
        loss = float(torch.stack(losses).mean())
        best = self.progress["best_val_loss"]
        self.progress.update(val_loss=loss, best_val_loss=loss if best is None else min(best, loss))
        self._log(log, "eval", val_loss=loss)
        return loss

    def sample(self) -> dict[str, Any]:
        """What the model writes after the beginning of a validation window, a function of weights and seed."""
        prompt = self._validation[len(self._validation) // 2, : min(PROMPT, self._config.seq_len)]
        with self._autocast():
            text = continuation(
                self.model, prompt, length=LENGTH, window=self._config.seq_len,
                temperature=TEMPERATURE, seed=self._config.seed,
            )  # fmt: skip
        return {"prompt": as_text(prompt), "text": as_text(text), "temperature": TEMPERATURE}

    def save(self, log: MetricsLog) -> int:
        """Writes the checkpoint: everything that the next step depends on. Returns its step."""
        log.sync()  # first: a checkpoint must never be ahead of its metrics
        tree = {
            "run": self.name,
            "config": self._config.to_json(),
            "text": self._corpus.sha256,
            "progress": self.progress,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        checkpoint.save(self.path, tree)
        return self.step

    def restore(self) -> None:
        """Takes up the checkpoint if there is one.

        Raises:
          CliError: it is damaged, or belongs to another run or text.
        """
        if not self.path.exists():
            return
        saved = checkpoint.load(self.path)
        if saved["run"] != self.name:
            raise CliError(f"the checkpoint '{self.path}' is one of {saved['run']}; put the right one in its place")
        ours, theirs = self._config.to_json(), type(self._config).from_json(saved["config"]).to_json()
        if theirs["steps"] < ours["steps"]:  # they may have grown since
            theirs = {**theirs, "steps": ours["steps"]}
        if found := difference(ours, theirs):
            option, here, there = found
            raise CliError(
                f"the checkpoint '{self.path}' belongs to another run: `{option}` is {there} there, {here} here; "
                "put the right one in its place"
            )
        if saved["text"] != self._corpus.sha256:
            raise CliError(f"the text has changed since '{self.path}' was written; restore it, or start a new run")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(saved["scaler"])
        self.progress = saved["progress"]

    def summary(self) -> dict[str, Any]:
        """One row of the final table: losses in nats per byte, CPU seconds of training steps, a sample of text."""
        held = state_bytes(self.optimizer)
        lr, others = self._config.peak_lrs(self.name)
        return {
            "optimizer": self.name,
            "lr": lr,
            "lr_others": others,
            "val_loss": self.progress["val_loss"],
            "best_val_loss": self.progress["best_val_loss"],
            "state_bytes": held,
            "ratio": held / self._adamw,
            "seconds_per_step": self.progress["seconds"] / self.step,
            "seconds": self.progress["seconds"],
            "sample": self.sample(),
        }

    def _diverged(self, step: int, loss: float, norm: float) -> CliError:
        return CliError(
            f"{self.name} diverged at step {step} (loss {loss:g}, gradient norm {norm:g}); "
            "lower its learning rate and start a new run"
        )

    def _set_lrs(self, step: int) -> None:
        """Scales the peak of every group alike."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = self._lr_at(step, peak)

    def _lr_at(self, step: int, peak: float) -> float:
        config = self._config
        return lr_at(step, peak=peak, warmup=config.warmup or 0, steps=config.steps, min_ratio=config.min_lr_ratio)

    def _backward(self, step: int) -> float:
        """Accumulates the gradients of the step's batch; returns its mean loss."""
        total = 0.0
        for loss in self._losses(step):
            loss = loss / self._config.accumulation
            torch.autograd.backward(self._scaler.scale(loss))
            total += float(loss.detach())
        return total

    def _losses(self, step: int) -> Iterator[Tensor]:
        """Mean losses of the equal parts of the step's batch; each is used up before the next is computed."""
        config = self._config
        size = config.batch_size * config.accumulation
        windows = training_batch(self._corpus.train, seed=config.seed, step=step, size=size, window=config.window)
        return map(self._loss, windows.chunk(config.accumulation))

    def _loss(self, windows: Tensor) -> Tensor:
        with self._autocast():
            return next_byte_loss(self.model, windows)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self._config.precision)
        return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)

    def _log(self, log: MetricsLog, event: str, **values: float) -> None:
        log.write(run=self.name, step=self.step, event=event, seconds=self.progress["seconds"], **values)

    def _log_refresh(self, log: MetricsLog) -> None:
        """Logs the subspaces if this step chose new ones."""
        view = subspaces(self.optimizer)
        if view and view["refreshes"] != self.progress["refreshes"]:
            self.progress["refreshes"] = view["refreshes"]
            self._log(log, "refresh", **view)
