"""A pretrained model and its tokenizer from a local folder, by transformers. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.utils._pytree import tree_map_only

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import reading
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.place import Place

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_ENDS = 1 << 20  # bytes of a file's ends that its digest reads


class Pretrained(NamedTuple):
    """`heads`: the children of the model that are new, and trained whole. `sha256` tells the files apart."""

    model: Any
    tokenizer: Any
    heads: tuple[str, ...]
    sha256: str


def load(place: Place, config: FinetuneConfig, labels: tuple[str, ...]) -> Pretrained:
    """The model and its tokenizer; what is new in it depends on `config.seed` alone.

    The model is in float32, with the precision bf16 all but its heads in bfloat16.

    Raises:
      CliError: something of it is missing, broken or of another kind.
    """
    if place.gguf and importlib.util.find_spec("gguf") is None:
        raise CliError(f"'{place.folder / place.gguf}' needs the package gguf; `pip install gguf`")
    where: dict[str, Any] = {"local_files_only": True, **({"gguf_file": place.gguf} if place.gguf else {})}
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(config.seed)
    classes: dict[str, Any] = {}
    auto = transformers.AutoModelForCausalLM
    if config.task == CLASSIFICATION:
        auto = transformers.AutoModelForSequenceClassification
        names = dict(enumerate(labels))
        labelled = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        classes = {**labelled, "ignore_mismatched_sizes": True}  # a head of another task is made anew
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder, **where)
        loading = {**where, **classes, "dtype": torch.bfloat16 if config.precision == "bf16" else torch.float32}
        model, loaded = auto.from_pretrained(place.folder, **loading, output_loading_info=True)
    except Exception as failure:  # of any of the packages that transformers reads files with
        said = " ".join(str(failure).split()).rstrip(".")[:300] or type(failure).__name__
        raise CliError(
            f"`--model` must be what transformers can load for {config.task}, got '{place}' ({said}); name another"
        ) from failure
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token if tokenizer.eos_token_id is not None else tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise CliError(f"the tokenizer in '{place}' must have a padding, an end or an unknown token; add one")
    model.config.pad_token_id = tokenizer.pad_token_id
    heads = _heads(model) if config.task == CLASSIFICATION else ()
    for name in heads:
        _widen(model.get_submodule(name))
    other = [key[0] if isinstance(key, tuple) else key for key in loaded["mismatched_keys"]]
    if broken := [name for name in other if name.partition(".")[0] not in heads]:
        raise CliError(f"`--model` must fit its config.json, got '{place}', whose `{broken[0]}` does not; repair it")
    return Pretrained(model, tokenizer, heads, _digest(place))


def longest(model: Any) -> int | None:
    """Tokens that the model's positions reach; None where it does not say."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _heads(model: nn.Module) -> tuple[str, ...]:
    base = str(getattr(model, "base_model_prefix", ""))
    return tuple(name for name, child in model.named_children() if name != base and list(child.parameters()))


def _widen(head: nn.Module) -> None:
    """Lets a head, which is trained, compute in float32 whatever comes in."""
    head.float()

    def widened(_: nn.Module, args: Any, keys: dict[str, Any]) -> Any:
        return tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, (args, keys))

    head.register_forward_pre_hook(widened, with_kwargs=True)


def _digest(place: Place) -> str:
    """Of the configuration, and of names, sizes and ends of the files with weights."""
    sha = hashlib.sha256()
    with reading(place.folder):
        for path in sorted(place.folder.iterdir()):
            if path.suffix in _WEIGHTS or path.name == "config.json":
                size = path.stat().st_size
                sha.update(json.dumps([path.name, size]).encode())
                with open(path, "rb") as file:
                    sha.update(file.read(_ENDS))
                    file.seek(max(0, size - _ENDS))
                    sha.update(file.read(_ENDS))
    return sha.hexdigest()
