"""transformers: optimizers of this package in a Trainer (needs transformers)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_core.adapters import AdaLoRA, GeoLoRA, LoKO
from lowrank_core.adapters.pair_optimizer import PairOptimizer
from lowrank_core.checks import require
from lowrank_core.memory.geometry import Rank, is_matrix
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.optim import METHODS, Monitor
from lowrank_core.optim.groups import param_groups
from lowrank_core.optim.targets import ALL_LINEAR

_OF_MODELS = (PairOptimizer, LoKO, GeoLoRA, AdaLoRA)  # made of a model, not of groups


def trainer_optimizer(
    model: nn.Module,
    cls: type[Optimizer] | str,
    *,
    target_modules: str | Iterable[str] = ALL_LINEAR,
    exclude: str | Iterable[str] = EXCLUDED,
    rank: Rank | None = None,
    others: Mapping[str, Any] | None = None,
    weight_decay: float = 0.0,
    verbose: bool = True,
    **keys: Any,
) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """What `Trainer(optimizer_cls_and_kwargs=...)` takes: an optimizer whose groups are split by the model.

    The matrices of linear layers are projected; embeddings, head, norms and biases are plain AdamW. Every parameter
    has its name, in the plan and in a saved state. Vectors are not decayed, as in Trainer. The learning rate is `lr`
    here, for Trainer's `learning_rate` reaches optimizers that it makes itself alone; its schedule acts on it.

    Optimizers of adapters are made here, of `model`, which `GeoLoRA` and `AdaLoRA` change; the answer hands them over.
    Those of pairs decay matrices and no vectors, unless `params` among the keys says otherwise.

    The answer is for one Trainer, which takes the groups out of it.

    Args:
      model: the one that the Trainer gets.
      cls: a class of `lowrank_core.optim`, or its name in `METHODS`, such as "galore"; or an optimizer of
        `lowrank_core.adapters`, which takes `target_modules`, `exclude` and `rank` only where it has such keys.
      target_modules, exclude, others, verbose: as in `param_groups`.
      rank: as there; None: the default of `cls`.
      weight_decay: >= 0, of matrices.
      keys: of `cls`, such as `lr` or `update_proj_gap`; `params` of an optimizer of pairs, such as
        `loraplus_param_groups` returns.

    Raises:
      TypeError: a key that `cls` does not have.
      ValueError: no such name, a value out of its range, or nothing would be projected.

    Example:
      >>> import torch
      >>> from lowrank_core.integrations.transformers import trainer_optimizer
      >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(50, 16), "up": torch.nn.Linear(16, 24)})
      >>> cls, kwargs = trainer_optimizer(model, "galore", rank=4, lr=1e-3, weight_decay=0.1, verbose=False)
      >>> [([name for name, _ in group["params"]], group["weight_decay"]) for group in kwargs["params"]]
      [(['embed.weight'], 0.1), (['up.bias'], 0.0), (['up.weight'], 0.1)]
    """
    if isinstance(cls, str):
        require(cls in METHODS, "trainer_optimizer", "cls", f"be a class or one of {', '.join(METHODS)}", cls)
        cls = METHODS[cls]
    if issubclass(cls, _OF_MODELS):
        asked = {"target_modules": target_modules, "exclude": exclude, "rank": rank, "others": others}
        usual = {"target_modules": ALL_LINEAR, "exclude": EXCLUDED, "rank": None, "others": None}
        keys |= {key: value for key, value in asked.items() if value != usual[key]}
        return _Ready(_of_model(model, cls, weight_decay, keys)), {}
    groups = []
    for group in param_groups(model, target_modules, exclude, rank, others=others, verbose=verbose):
        for matrices in (True, False):
            params = [(name, p) for name, p in group["params"] if is_matrix(tuple(p.shape)) is matrices]
            if params:
                decay = group.get("weight_decay", weight_decay) if matrices else 0.0
                groups.append({**group, "params": params, "weight_decay": decay})
    cls([{**group, "params": list(group["params"])} for group in groups], **keys)  # what it refuses, it refuses here
    return cls, {"params": groups, **keys}


class _Ready:
    """Takes the place of a class, or of a factory, where the optimizer is made already."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, *given: Any) -> Any:
        return self.optimizer if given else self


def _of_model(model: nn.Module, cls: type[Optimizer], weight_decay: float, keys: dict[str, Any]) -> Optimizer:
    if issubclass(cls, PairOptimizer) and "params" not in keys:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        split = [[(name, p) for name, p in trained if (p.ndim >= 2) is matrices] for matrices in (True, False)]
        decays = (weight_decay, 0.0)
        groups = [{"params": some, "weight_decay": d} for some, d in zip(split, decays, strict=True) if some]
        return cls(model, groups, **keys)
    return cls(model, **keys, **({"weight_decay": weight_decay} if weight_decay else {}))  # type: ignore[arg-type]


class MonitorCallback(TrainerCallback):
    """A callback that attaches a `Monitor` while a Trainer trains, and adds means over the matrices to Trainer's logs.

    They are `subspace/captured`, `subspace/overlap`, `subspace/rank`, `subspace/refresh_seconds` (a sum) and
    `subspace/update_ratio`, in the log's history and for callbacks that come after this one. Those of `report_to` come
    before what `Trainer(callbacks=...)` gets: `first_in` puts this one in front of them.

    Args:
      every, path, writer, keep: as in `Monitor`, whose `rows` stay in `monitor`. Means are over rows that are kept.

    Warns:
      UserWarning: a training with reporters in `report_to` begins and `first_in` was not called.

    Example:
      >>> from lowrank_core.integrations.transformers import MonitorCallback
      >>> MonitorCallback(every=10).monitor is None  # before a training
      True
    """

    def __init__(
        self, *, every: int = 1, path: str | os.PathLike[str] | None = None, writer: Any = None, keep: int = 100_000
    ) -> None:
        self._options = {"every": every, "path": path, "writer": writer, "keep": keep}
        self._logged, self._leads = 0, False
        self.monitor: Monitor | None = None

    def first_in(self, trainer: Trainer) -> MonitorCallback:
        """Puts itself in front of all callbacks of `trainer`, whose order stays, and returns itself.

        So TensorBoard, W&B and every other reporter gets its figures: those of `report_to`, of `callbacks=` and what
        is added later. It may be among the callbacks already.
        """
        others = []
        while (one := trainer.pop_callback(TrainerCallback)) is not None:
            others.append(one)
        for one in (self, *(one for one in others if one is not self)):
            trainer.add_callback(one)
        self._leads = True
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Trainer's: attaches the monitor."""
        if args.report_to and not self._leads:
            warnings.warn(
                f"MonitorCallback: `report_to` {args.report_to} gets none of its figures, for a Trainer calls its own "
                "reporters first; call `first_in(trainer)` of the callback before `train()`",
                stacklevel=2,
            )
        optimizer = given["optimizer"]
        self._logged = 0
        self.monitor = Monitor(getattr(optimizer, "optimizer", optimizer), **self._options)  # accelerate wraps it

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Trainer's: adds the means since the last log."""
        if self.monitor is None:
            return
        rows = [row for row in self.monitor.newest(self.monitor.recorded - self._logged) if row["rank"] is not None]
        self._logged = self.monitor.recorded
        found = {}
        for key in ("captured", "overlap", "rank", "update_ratio", "refresh_seconds"):
            values = [row[key] for row in rows if row[key] is not None]
            if values:
                found[f"subspace/{key}"] = sum(values) if key == "refresh_seconds" else fmean(values)
        for logs in (given.get("logs"), state.log_history[-1] if state.log_history else None):
            if logs is not None:
                logs.update(found)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Trainer's: detaches the monitor."""
        if self.monitor is not None:
            self.monitor.close()
