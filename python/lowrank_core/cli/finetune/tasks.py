"""What a model is asked: batches of tokens, and outputs with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lowrank_core.cli.data import training_batch, validation_windows
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.rows import Parted, Row


class Batch(NamedTuple):
    """What a model takes, and the classes [B] or the next tokens [B, L], int64, that its logits are compared with."""

    inputs: dict[str, Tensor]
    targets: Tensor


class Task(Protocol):
    """Batches of a run's data."""

    def training(self, number: int) -> Batch:
        """Of forward pass 1, 2, ...: a function of the seed and that number, so that a resume needs no state."""
        ...

    def validation(self) -> Sequence[Batch]:
        """Always the same."""
        ...

    @property
    def largest(self) -> int:
        """The largest number of a token."""
        ...


def task_of(config: FinetuneConfig, data: Parted, tokenizer: Any) -> Task:
    """The task that `config` names, of `data`.

    Raises:
      CliError: there is too little text.
    """
    return (Classification if config.task == CLASSIFICATION else CausalLM)(config, data, tokenizer)


class Classification:
    """A label for each text; texts are drawn without replacement until all have been seen."""

    def __init__(self, config: FinetuneConfig, data: Parted, tokenizer: Any) -> None:
        self._config, self._pad = config, int(tokenizer.pad_token_id)
        self._classes = {label: number for number, label in enumerate(data.labels)}
        self._tokenizer = tokenizer
        self._train, self._val = self._encoded(data.train), self._encoded(data.val[: config.eval_samples])

    def training(self, number: int) -> Batch:
        config, count = self._config, len(self._train)
        first = (number - 1) * config.batch_size
        drawn = [self._order(at // count)[at % count] for at in range(first, first + config.batch_size)]
        return self._batch([self._train[at] for at in drawn])

    def validation(self) -> list[Batch]:
        size = self._config.batch_size
        return [self._batch(self._val[first : first + size]) for first in range(0, len(self._val), size)]

    @property
    def largest(self) -> int:
        return max(self._pad, *(max(tokens) for tokens, _ in (*self._train, *self._val)))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.Generator(np.random.Philox(key=np.array([self._config.seed, epoch], dtype=np.uint64)))
        return random.permutation(len(self._train))

    def _encoded(self, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
        found = self._tokenizer([row.text for row in rows], truncation=True, max_length=self._config.seq_len)
        kept = (tokens or [self._pad] for tokens in found["input_ids"])
        return [(tokens, self._classes[row.label]) for tokens, row in zip(kept, rows, strict=True)]

    def _batch(self, some: Sequence[tuple[list[int], int]]) -> Batch:
        length = max(len(tokens) for tokens, _ in some)
        ids = torch.tensor([tokens + [self._pad] * (length - len(tokens)) for tokens, _ in some])
        mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _ in some])
        return Batch({"input_ids": ids, "attention_mask": mask}, torch.tensor([label for _, label in some]))


class CausalLM:
    """Each next token of windows of `seq_len` tokens; texts follow each other, each closed by the end token."""

    def __init__(self, config: FinetuneConfig, data: Parted, tokenizer: Any) -> None:
        self._config = config
        self._train, self._val = (self._stream(rows, tokenizer) for rows in (data.train, data.val))

    def training(self, number: int) -> Batch:
        config = self._config
        return self._batch(
            training_batch(self._train, seed=config.seed, step=number, size=config.batch_size, window=self._window)
        )

    def validation(self) -> list[Batch]:
        count = min(self._config.eval_samples, len(self._val) // self._window)
        windows = validation_windows(self._val, count=count, window=self._window)
        return [self._batch(some) for some in torch.split(windows, self._config.batch_size)]

    @property
    def largest(self) -> int:
        return int(max(self._train.max(), self._val.max()))

    @property
    def _window(self) -> int:
        return self._config.seq_len + 1

    def _stream(self, rows: Sequence[Row], tokenizer: Any) -> NDArray[np.uint8]:
        end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        found = tokenizer([row.text for row in rows], add_special_tokens=False)["input_ids"]
        tokens = np.array([token for text in found for token in (*text, *end)], dtype=np.int64)
        if len(tokens) < self._window:
            raise CliError(
                f"`--data` must hold at least {self._window} tokens to train on and as many held out, got "
                f"{len(tokens)}; add text or lower `--seq-len`"
            )
        return cast("NDArray[np.uint8]", tokens)  # windows are cut alike from whatever is counted

    @staticmethod
    def _batch(windows: Tensor) -> Batch:
        return Batch({"input_ids": windows[:, :-1]}, windows[:, 1:])


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (nats, float32) of classes or tokens."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def right(logits: Tensor, targets: Tensor) -> int:
    """How many of the classes or tokens are the likeliest."""
    return int((logits.argmax(-1) == targets).sum())
