"""Docstrings of Python's standard library, labelled by their package, under MiniLM: all of it, or its last layer."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lowrank_core.atomic import write_atomic
from lowrank_core.cli.environment import version
from lowrank_core.cli.finetune.docstrings import docstrings
from torch import Tensor, nn

from adapters_compared.runs import WEIGHTS
from adapters_compared.stream import HELD_OUT, Stream, Task, drawn

TOKENS = 48  # of a docstring
SAMPLES = 800  # of a stream, at most
CACHE = Path(__file__).resolve().parents[2] / "build/adapters_compared"


class Pooled(nn.Module):
    """Layers of a BERT, under them its embedding or nothing, and a new head on the mean over the tokens that count."""

    def __init__(self, embedding: nn.Module | None, layers: nn.ModuleList, width: int, classes: int) -> None:
        super().__init__()
        self.embedding, self.layers, self.head = embedding, layers, nn.Linear(width, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, C] of tokens [B, L], or of what layers below made of them [B, L, d]; the mask is of bools."""
        tokens, mask = without_padding(tokens, mask)
        states = states_of(tokens.float() if self.embedding is None else self.embedding(tokens), mask, self.layers)
        return self.head(mean_of(states, mask))


def without_padding(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both without what pads all of the batch, which comes last."""
    length = int(mask.sum(1).max())
    return tokens[:, :length], mask[:, :length]


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """[B, d], over the tokens that count, of states [B, L, d]."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def states_of(states: Tensor, mask: Tensor, layers: nn.ModuleList) -> Tensor:
    """[B, L, d] after `layers`."""
    for layer in layers:
        states = layer(states, mask[:, None, None])
    return states


def folder_of(distribution: str) -> Path:
    """Where the weights lie that it ships; from now on transformers loads in silence."""
    import transformers

    found = importlib.util.find_spec(distribution.replace("-", "_"))
    assert found is not None and found.origin is not None, f"{distribution} is not installed"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return Path(found.origin).parent


@cache
def _encoder() -> tuple[Any, Any]:
    import transformers

    folder = folder_of(WEIGHTS) / "model"
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    return model.float().eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@cache
def texts(packages: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and mask [n, TOKENS], and classes [n], of the docstrings of the first so many packages."""
    return labelled(packages, _encoder()[1])


def labelled(packages: int, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`texts` in the tokens of any tokenizer."""
    rows = docstrings()
    labels = sorted({row.label for row in rows})[:packages]
    rows = [row for row in rows if row.label in labels]
    found = tokenizer(
        [row.text for row in rows], truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"].bool(), torch.tensor([labels.index(row.label) for row in rows])


@cache
def below_the_last(packages: int) -> Tensor:
    """[n, TOKENS, d] float16: what the last layer gets of each; computed once, and kept beside the build."""
    tokens, mask, _ = texts(packages)
    made_by = [version(name) for name in (WEIGHTS, "transformers", "torch")]
    key = hashlib.sha256(repr((made_by, tokens.tolist())).encode()).hexdigest()[:16]
    path = CACHE / f"{key}.pt"
    if path.exists():
        return torch.load(path)
    model, parts = _encoder()[0], []
    with torch.no_grad():
        for ids, kept in zip(tokens.split(32), mask.split(32), strict=True):
            parts.append(states_of(model.embeddings(ids), kept, model.encoder.layer[:-1]).half())
    states = torch.cat(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    torch.save(states, written)
    write_atomic(path, written.getvalue())
    return states


def model(whole: bool, packages: int, seed: int) -> nn.Module:
    """MiniLM, or its last layer, under a head that the seed draws."""
    encoder = copy.deepcopy(_encoder()[0])
    torch.manual_seed(seed)
    layers = encoder.encoder.layer if whole else encoder.encoder.layer[-1:]
    return Pooled(encoder.embeddings if whole else None, layers, encoder.config.hidden_size, packages).eval()


def stream(whole: bool, packages: int, seed: int) -> Stream:
    """The same are held out with every seed."""
    tokens, mask, classes = texts(packages)
    inputs = (tokens if whole else below_the_last(packages), mask)
    return drawn(inputs, classes, seed, SAMPLES, int(HELD_OUT * len(classes)))


def _task(name: str, whole: bool, packages: int) -> Task:
    return Task(name, partial(model, whole, packages), partial(stream, whole, packages), heads=("head",))


LAST, TWO, WHOLE = _task("last layer", False, 8), _task("two classes", False, 2), _task("minilm", True, 8)
