"""Frozen factors around a trained square matrix: W + scale B S A, of which S [r, r] alone trains."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair, require_module
from lowrank_core.adapters.layers import LoRALinear


class SquareFactor(nn.Module):
    """What stands in the place of `lora_B` of a PEFT layer: a linear map by B S, with B [m, r] frozen.

    Its state holds the product as `weight`, so that what is saved is a plain LoRA. What is loaded is such a product,
    too; S is solved from it, and where it is not of the form B S its own orthonormal factor takes the place of B.
    """

    outer: Tensor
    bias: nn.Parameter | None

    def __init__(self, outer: Tensor, square: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("outer", outer, persistent=False)
        self.lora_S = nn.Parameter(square)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = outer.shape

    @property
    def weight(self) -> Tensor:
        """[m, r]: B S."""
        return self.outer @ self.lora_S

    def forward(self, x: Tensor) -> Tensor:
        """[..., r] to [..., m]."""
        return nn.functional.linear(nn.functional.linear(x, self.lora_S), self.outer, self.bias)

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {"weight": self.outer, **({} if self.bias is None else {"bias": self.bias})}
        for name, tensor in own.items():
            key = f"{prefix}{name}"
            loaded = state_dict.get(key)
            if loaded is None:
                missing_keys.append(key)
            elif loaded.shape != tensor.shape:
                error_msgs.append(f"size mismatch for {key}: {list(loaded.shape)} against {list(tensor.shape)}")
            elif name == "weight":
                self._take(loaded)
            else:
                tensor.data.copy_(loaded)
        if strict:
            unexpected_keys += [
                key for key in state_dict if key.startswith(prefix) and key.removeprefix(prefix) not in own
            ]

    @torch.no_grad()
    def _take(self, product: Tensor) -> None:
        wanted, outer = (t.to("cpu", torch.float64) for t in (product, self.outer))
        square = torch.linalg.lstsq(outer, wanted, driver="gelsd").solution  # B may lack rank
        # A product that was rounded is off by half a unit in each entry: by more than that B is another one.
        unit = max(torch.finfo(t.dtype).eps for t in (product, self.outer))
        if torch.linalg.vector_norm(outer @ square - wanted) > unit * torch.linalg.vector_norm(wanted):
            outer, square = torch.linalg.qr(wanted)
            self.outer.copy_(outer)
        self.lora_S.copy_(square)


def put_square(pair: Pair, b: Tensor, s: Tensor, a: Tensor) -> None:
    """Freezes B and A of a linear layer with their values [m, r] and [r, n], and puts S [r, r] in between."""
    module = cast(Any, pair.module)
    outer, square, inner = (t.to(pair.a) for t in (b, s, a))
    if isinstance(module, LoRALinear):
        module.lora_A.data.copy_(inner)
        module.lora_B.data.copy_(outer)
        module.set_square(square)
        return
    # Buffers, not frozen parameters: PEFT lets the parameters of an adapter train whenever it is made active.
    holder = module.lora_A[pair.adapter]
    del holder.weight
    holder.register_buffer("weight", inner.contiguous())
    module.lora_B[pair.adapter] = SquareFactor(
        outer.contiguous(), square.contiguous(), module.lora_B[pair.adapter].bias
    )


def is_square(pair: Pair) -> bool:
    """Whether a square matrix is between its factors."""
    return square_of(pair) is not None


def square_of(pair: Pair) -> tuple[Tensor, nn.Parameter] | None:
    """B [m, r], frozen, and S [r, r] between it and A; None where there is no S."""
    module = cast(Any, pair.module)
    if isinstance(module, LoRALinear):
        return None if module.lora_S is None else (module.lora_B, module.lora_S)
    outer = None if pair.embedding or pair.adapter is None else module.lora_B[pair.adapter]
    return (outer.outer, outer.lora_S) if isinstance(outer, SquareFactor) else None


@torch.no_grad()
def fold_square_(model: nn.Module) -> int:
    """Makes adapters that `init_lora_` started by "lora_xs" or "lora_sb" plain ones: B S takes the place of B.

    Both factors train from then on, so an optimizer must be made after it. Saving needs no folding for PEFT's layers:
    their state holds B S as `lora_B.weight`, which `save_pretrained` and checkpoints of Trainer write, and stock PEFT
    loads.

    Args:
      model: any module.

    Returns:
      The number of adapters folded; 0 where all are plain.

    Raises:
      TypeError: `model` is no module.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(adapters.LoRALinear(torch.nn.Linear(6, 4), rank=2))
      >>> adapters.init_lora_(model, "lora_xs")
      >>> adapters.fold_square_(model), [name for name, p in model.named_parameters() if p.requires_grad]
      (1, ['0.lora_A', '0.lora_B'])
    """
    require_module("fold_square_", model)
    count = 0
    for module in list(model.modules()):
        found = cast(Any, module)
        if isinstance(module, LoRALinear):
            count += module.fold_square()
        elif isinstance(getattr(module, "lora_B", None), nn.ModuleDict):
            for key, factor in list(found.lora_B.items()):
                if isinstance(factor, SquareFactor):
                    found.lora_B[key] = _linear(factor.weight, factor.bias)
                    found.lora_A[key] = _linear(found.lora_A[key].weight, None)
                    count += 1
    return count


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """Without a draw of torch's generator."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = nn.Parameter(weight.detach().clone()), cast(nn.Parameter, bias)
    return made
