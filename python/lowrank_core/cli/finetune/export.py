"""The adapter of a run, as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lowrank_core.adapters.peft_state import PeftAdapter, save_adapter
from lowrank_core.adapters.to_peft import to_peft
from lowrank_core.cli.files import writing
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig

CONFIG_FILE = "adapter_config.json"
_TASKS = {True: "SEQ_CLS", False: "CAUSAL_LM"}


def adapter(model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> PeftAdapter:
    """Plain LoRA of scale 1, each layer with its own rank, and `heads` whole. A layer of rank 0 has one of zeros."""
    return to_peft(
        model, rank=config.rank, modules_to_save=heads,
        task_type=_TASKS[config.task == CLASSIFICATION], base_model_name_or_path=config.model,
    )  # fmt: skip


def export(folder: Path, model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> None:
    """Writes `adapter` into `folder`.

    Raises:
      CliError: the disk refused.
    """
    with writing(folder / CONFIG_FILE):
        save_adapter(folder, *adapter(model, config, heads))
