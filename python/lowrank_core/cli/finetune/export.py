"""The adapter of a run, as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lowrank_core.adapters.peft_state import PREFIX, Module, PeftAdapter, adapter_of, save_adapter
from lowrank_core.cli.files import writing
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.methods import factors

CONFIG_FILE = "adapter_config.json"
_TASKS = {True: "SEQ_CLS", False: "CAUSAL_LM"}


def adapter(model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> PeftAdapter:
    """Plain LoRA of scale 1, each layer with its own rank, and `heads` whole. A layer of rank 0 has one of zeros."""
    modules = {}
    for name, (b, a, scale) in factors(model).items():
        if not len(a):
            b, a = b.new_zeros(len(b), 1), a.new_zeros(1, a.shape[1])
        modules[PREFIX + name] = Module(scale * b, a, embedding=False)
    facts = {"task_type": _TASKS[config.task == CLASSIFICATION], "base_model_name_or_path": config.model}
    state, made = adapter_of(modules, config.rank, facts)
    if heads:
        made["modules_to_save"] = list(heads)
        saved = {name: p for name, p in model.named_parameters() if name.partition(".")[0] in heads}
        state |= {PREFIX + name: p.detach().clone() for name, p in saved.items()}
    return PeftAdapter(state, made)


def export(folder: Path, model: nn.Module, config: FinetuneConfig, heads: tuple[str, ...]) -> None:
    """Writes `adapter` into `folder`.

    Raises:
      CliError: the disk refused.
    """
    with writing(folder / CONFIG_FILE), torch.no_grad():
        save_adapter(folder, *adapter(model, config, heads))
