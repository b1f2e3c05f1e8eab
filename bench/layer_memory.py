"""One decoder layer of Llama-7B under Q-GaLore with `Int8Linear`, layer by layer: the estimate, and what is measured.

python bench/layer_memory.py

Trains one decoder layer of transformers (4096, 11008) in bfloat16 on a small batch and counts the storages of weights
and state, and the gradients that are there whenever one has come, against what `lowrank-core estimate` says of the
layer. Writes docs/results/layer_memory.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from _train import write
from lowrank_core.cli.estimate import estimate
from lowrank_core.cli.presets import PRESETS
from lowrank_core.cli.subjects import Listed
from lowrank_core.optim import Int8Linear, QGaLoreAdamW, fused_backward, param_groups
from lowrank_core.optim.int8 import Int8Weight
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

SIZES = PRESETS["7b"]
HEADS, TOKENS, STEPS = 32, 16, 3


class Layer(nn.Module):
    """One decoder layer with its linear weights in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=SIZES.dim, intermediate_size=SIZES.ffn, num_attention_heads=HEADS, attn_implementation="eager"
        )
        self.layer, self.rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
        for module in [*self.layer.modules()]:
            for name, child in [*module.named_children()]:
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear.from_linear(child))

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x, position_embeddings=self.rotary(x, torch.arange(TOKENS)[None]))
        return found[0] if isinstance(found, tuple) else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[256, 1024], help="of the projection")
    ranks = parser.parse_args().ranks
    torch.set_default_dtype(torch.bfloat16)
    model = {str(rank): estimated(SIZES.parts(), rank) for rank in ranks}
    layer = {}
    for rank in ranks:
        said = estimated([(SIZES.parts()[1][0], 1)], rank)
        layer[str(rank)] = {"estimated": said, "measured": compared(said, rank)}
    write("layer_memory", model=model, layer=layer)


def estimated(parts: Any, rank: int) -> dict[str, Any]:
    """The row of Q-GaLore for a model, or for a layer."""
    row: dict[str, Any] = estimate(Listed(parts, SIZES.dim), {"qgalore": {"rank": rank}}, "bf16", int8_weights=True)[
        "bytes"
    ][1]
    print({"rank": rank, **{key: row[key] for key in ("weights", "state", "gradients", "layerwise")}})
    return row


def compared(said: dict[str, Any], rank: int) -> dict[str, Any]:
    """What training the layer at `rank` holds.

    Raises:
      SystemExit: the estimate is another one.
    """
    found = {"at_once": trained(rank, 1, at_once=True), "added": trained(rank, 2, at_once=False)}
    for way, held in found.items():
        print({"rank": rank, "way": way, **held})
        expected = said["layerwise"][way]
        for key, count in (("weights", said["weights"]), ("state", said["state"])):
            require(held[key] == count, f"{key} of {held[key]} bytes at rank {rank}, estimated {count}")
        between = max(held["gradients_at_most"][1:])
        require(between <= expected["gradients"], f"{between} bytes of gradients, estimated {expected['gradients']}")
    require(max(found["at_once"]["gradients_at_step"]) == 0, "gradients are held at a step")
    require(max(found["at_once"]["gradients_at_most"]) == said["layerwise"]["at_once"]["gradients"], "the largest one")
    at_step, added = found["added"]["gradients_at_step"], said["layerwise"]["added"]
    require(at_step == [added["due"], *[added["held"]] * (STEPS - 1)], f"{at_step} bytes at steps")
    return found


def require(met: bool, otherwise: str) -> None:
    if not met:
        raise SystemExit(f"layer_memory: {otherwise}")


def trained(rank: int, passes: int, *, at_once: bool) -> dict[str, Any]:
    """Bytes while a new layer takes some steps of `passes` backward passes each."""
    torch.manual_seed(0)
    model = Layer()
    optimizer = QGaLoreAdamW(
        param_groups(model, rank=rank, verbose=False), lr=1e-3, nonfinite="raise", update_proj_gap=100, stagger=False
    )
    alive: list[int] = []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda _: alive.append(gradients(model, optimizer)))
    fused_backward(model, optimizer, at_once=at_once)
    most, at_step, risen = [], [], []
    for _ in range(STEPS):
        alive.clear()
        before = peak(anew=True)
        for _ in range(passes):
            (model(torch.randn(1, TOKENS, SIZES.dim)).float().square().mean() / passes).backward()
        most.append(max(alive))
        at_step.append(gradients(model, optimizer))
        optimizer.step()
        risen.append(peak() - before)
    states = (entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, Tensor))
    return {
        "weights": stored(parts(model)),
        "state": stored(states),
        "gradients_at_most": most,
        "gradients_at_step": at_step,
        "process_rises_in_step": risen,
    }


def parts(model: nn.Module) -> Iterable[Tensor]:
    for param in model.parameters():
        yield from (param.codes, param.scales) if isinstance(param, Int8Weight) else (param,)


def gradients(model: nn.Module, optimizer: QGaLoreAdamW) -> int:
    """Bytes of all that is there: in `.grad`, and held until the step."""
    held = optimizer._source.held.values() if optimizer._source is not None else ()
    there = [param.grad for param in model.parameters() if param.grad is not None and not param.grad.is_sparse]
    for one in held:
        there += [*(one.draft.low or ()), *(() if one.draft.freed else one.draft.grads)]
    return sum(tensor.numel() * tensor.element_size() for tensor in there)


def stored(tensors: Iterable[Tensor]) -> int:
    """Bytes of storages, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak(*, anew: bool = False) -> int:
    """Bytes: the most that the process had since the last call with `anew`, which gives what it has."""
    if anew:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as lines:
        name = "VmRSS" if anew else "VmHWM"
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


if __name__ == "__main__":
    main()
