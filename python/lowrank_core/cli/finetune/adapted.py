"""A pretrained model beside which an adapter trains: only what trains is its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowrank_core.adapters.layers import USVLinear


class Adapted(nn.Module):
    """Maps token ids [B, L] to logits, [B, classes] or [B, L, vocabulary].

    Its state dict has what requires gradients, and the ranks of layers that keep one; the rest is in the files that
    the model came from.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        more = {"use_cache": False} if getattr(self.inner.config, "use_cache", None) else {}
        logits: Tensor = self.inner(**inputs, **more).logits
        return logits

    def state_dict(self, *args: Any, **keys: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """By the names of `inner`."""
        kept = {name: p.detach() for name, p in self.inner.named_parameters() if p.requires_grad}
        for name, layer in self.inner.named_modules():
            if isinstance(layer, USVLinear):
                kept[f"{name}.active"] = layer.active
        return kept

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Takes up what `state_dict` gave. Raises KeyError if it is of another model."""
        if state_dict.keys() != (own := self.state_dict()).keys():
            raise KeyError(f"load_state_dict: names differ: {sorted(state_dict.keys() ^ own.keys())[0]}")
        for name, tensor in own.items():
            tensor.copy_(state_dict[name])
