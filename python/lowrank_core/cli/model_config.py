"""A model from its transformers configuration: names and shapes, no weights, no network."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import quoted
from lowrank_core.extras import how_to_install

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "config.json"
MAX_TENSORS = 100_000  # weights of a model; building more takes minutes
_MAX_BYTES = 10_000_000  # of a configuration: who names a file of weights gets a sentence at once
# Tried in this order where the configuration names no class of transformers.
_HEADS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel")


def build_model(given: str) -> nn.Module:
    """The model that the configuration `given`, a file or a folder with `config.json`, describes: on the meta device.

    Its class is the one that the configuration names in `architectures`, or the first of causal, masked and
    sequence-to-sequence language model and bare model that there is for its type.

    Raises:
      CliError: the file is none, describes no model that is known or can be built, or transformers is missing.
    """
    values = _read(given)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # some models would ask for a backbone
    try:
        import torch
        import transformers
    except ModuleNotFoundError as missing:
        raise CliError(
            f"`--model` needs transformers and torch, and there is no {missing.name}; {how_to_install('integrations')}"
        ) from missing
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise CliError(
            f"`--model` must name a configuration whose `model_type` transformers {transformers.__version__} has, got "
            f"{quoted(str(kind))}; use a newer transformers, or give the matrices by `--shape`"
        )
    transformers.logging.set_verbosity_error()  # it talks of uses that are not meant here
    with _building(given), torch.device("meta"):
        config = transformers.CONFIG_MAPPING[kind].from_dict(values)
        return _model(transformers, config, values)


def _read(given: str) -> dict[str, Any]:
    """The configuration as it is written, without code of its own that it asks for."""
    path = Path(given) / NAME if os.path.isdir(given) else Path(given)
    rule = f"`--model` must be a transformers {NAME}, or a folder that has one, got '{given}'"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CliError(f"{rule}, which has {path.stat().st_size:,} bytes; name the configuration beside it")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise CliError(f"{rule} ({failure.strerror}); no model is downloaded") from failure
    except (ValueError, RecursionError) as failure:
        raise CliError(f"{rule}, which is no JSON; save it by `config.save_pretrained(folder)`") from failure
    if not isinstance(values, dict):
        raise CliError(f"{rule}, which is no JSON object; save it by `config.save_pretrained(folder)`")
    return {key: value for key, value in values.items() if key not in ("auto_map", "quantization_config")}


def _model(transformers: Any, config: Any, values: dict[str, Any]) -> nn.Module:
    eager = {"attn_implementation": "eager"}  # the one that asks for no further package
    named = (values.get("architectures") or [None])[0]
    head: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    known = isinstance(head, type) and issubclass(head, transformers.PreTrainedModel)
    if known:
        made: nn.Module = head._from_config(config, **eager)
        return made
    heads = [getattr(transformers, name) for name in _HEADS]
    fitting = next(head for head in heads if type(config) in head._model_mapping or head is transformers.AutoModel)
    made = fitting.from_config(config, **eager)
    return made


@contextmanager
def _building(given: str) -> Iterator[None]:
    """Stops a model that is too large, and turns what transformers and torch say of its sizes into one sentence."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    count = 0

    def counted(module: nn.Module, name: str, param: Tensor | None) -> None:
        nonlocal count
        count += 1
        if count > MAX_TENSORS:
            raise CliError(
                f"`--model` must describe at most {MAX_TENSORS:,} weights, got more in '{given}'; "
                "give its matrices by `--shape`, with counts"
            )

    hook = register_module_parameter_registration_hook(counted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CliError:
        raise
    except Exception as failure:  # of any kind: the sizes are the user's, the code is another's
        first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise CliError(f"cannot build the model of '{given}': {first[:200]}; mend its sizes") from failure
    finally:
        hook.remove()
