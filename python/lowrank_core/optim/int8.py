"""Linear layers whose weights are stored in 8 bits and trained there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

from lowrank_core.ops.subspace_step.check import BLOCK
from lowrank_core.ops.subspace_step.codecs import decode_moment, encode_moment
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.seeds import mix_seed

_LARGEST = 127  # code
_DECODED = 1 << 10  # blocks of codes at a time
_WEIGHT = 1  # beside the draws of moments, which have the seed of their parameter itself
_PARTS = ("codes", "scales")
_aten = torch.ops.aten


class Int8Weight(Tensor):
    """A tensor that reads as floats and is stored as 8-bit codes with a float32 scale for each 256 of them.

    x ~ scale * code, codes -127 to 127, scale = largest |x| of the block / 127. Every operation reads it decoded, in
    its dtype. None writes into it but `copy_`, which rounds to nearest, and `write`.

    Source: Zhang et al. 2024 (Q-GaLore, arXiv:2407.08296), section 3.4. Deviation: symmetric codes, where the published
      zero point is rounded and clips the ends of a block, which biases them.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Int8Weight:
        made: Int8Weight = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=dtype, device=codes.device)
        made.codes, made.scales = codes, scales
        return made

    def __init__(self, codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """`codes`: int8, contiguous, of its shape; `scales`: float32, one for each 256 codes."""

    @classmethod
    def of(cls, value: Tensor) -> Int8Weight:
        """`value`, rounded to nearest, in its own dtype. An entry is off by at most half a step of its block."""
        return cls(*_nearest(value.detach()), value.dtype)

    def decoded(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense values, in its own dtype or another one."""
        value = torch.empty(self.codes.shape, dtype=dtype or self.dtype, device=self.codes.device)
        if not has_kernels(value.device):
            steps = self.scales.repeat_interleave(BLOCK)[: value.numel()].view(value.shape)
            return value.copy_(self.codes * steps)
        codes, to = self.codes.view(-1), value.view(-1)
        for some, blocks in zip(_runs(_DECODED * BLOCK, len(codes)), _runs(_DECODED, len(self.scales)), strict=True):
            # Other dtypes than float32 go through a piece of it, which stays in a cache.
            part = to[some] if value.dtype == torch.float32 else torch.empty(len(codes[some]), dtype=torch.float32)
            decode_moment(part, codes[some], self.scales[blocks], second=False)
            if part.dtype != value.dtype:
                to[some] = part
        return value

    def write(self, value: Tensor, seed: int, step: int) -> None:
        """Stores `value`, read as float32, without bias: exact in the mean, and the largest of each block exactly.

        Determinism: D0 (same bits on every device and level; docs/numerics.md), by seed, step and number of the entry.
        """
        value = value.float().contiguous()
        encode_moment(self.codes, self.scales, value, second=False, seed=mix_seed(seed, _WEIGHT), step=step)
        torch.autograd.graph.increment_version(self)  # a graph made before holds the old weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Int8Weight({self.decoded()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.codes, self.scales, self.dtype, self.requires_grad, isinstance(self, nn.Parameter))

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Weight:
        if id(self) not in memo:
            parts = self.codes.clone(), self.scales.clone()
            copied = _rebuilt(*parts, self.dtype, self.requires_grad, isinstance(self, nn.Parameter))
            copied.grad = None if self.grad is None else self.grad.clone()
            memo[id(self)] = copied
        found: Int8Weight = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OWN:
            return _OWN[func](*args, **kwargs)
        if func._schema.is_mutable and any(isinstance(arg, cls) for arg in _written(func, args, kwargs)):
            raise RuntimeError(
                f"Int8Weight: {func.__name__} must not write into a weight in 8 bits, which would lose what is below "
                "its steps; train it with an optimizer of lowrank_core.optim, or use copy_"
            )
        args, kwargs = tree_map_only(cls, cls.decoded, (args, kwargs))
        return func(*args, **kwargs)


class Int8Linear(nn.Linear):
    """A linear layer whose weight is stored, and trained, in 8 bits: 1.016 bytes for each entry.

    y = x W^T + b, with W decoded for the product, forward and backward, and not kept in between. Its gradient is an
    ordinary one of the weight's dtype. An optimizer of this package adds its step in float32 and rounds to codes
    without bias: a step that is smaller than a code's is not lost, it is taken now and then. Under autocast the product
    has autocast's dtype. The layer trains whether or not its input needs a gradient. The bias stays as it is.

    `state_dict` has `weight.codes` and `weight.scales`, plain tensors; a `weight` of an ordinary layer is taken, too.

    Args:
      in_features, out_features, bias, device, dtype: as in `nn.Linear`. Weights are drawn as there and rounded to
        nearest.

    Raises:
      NotImplementedError: in a step, on a device that the package has no kernels for.

    Determinism: D1 (same bits for any number of threads; docs/numerics.md) as far as torch's products are.
    Source: as `Int8Weight`. Where the published layer silently freezes if its input needs no gradient, this one trains.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW, Int8Linear
      >>> layer = Int8Linear.from_linear(torch.nn.Linear(64, 32))
      >>> optimizer = GaLoreAdamW(layer.parameters(), lr=0.01, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> layer.weight.codes.dtype, layer.weight.dtype
      (torch.int8, torch.float32)
    """

    weight: Int8Weight  # that is a parameter, too

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = nn.Parameter(Int8Weight.of(self.weight))  # type: ignore[assignment]

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """The same layer with its weight in 8 bits, rounded to nearest; the bias is shared.

        Raises:
          TypeError: `linear` is no nn.Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"Int8Linear.from_linear: `linear` must be a torch.nn.Linear, got {type(linear).__name__}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        coded = nn.Parameter(Int8Weight.of(linear.weight), requires_grad=linear.weight.requires_grad)
        made.register_parameter("weight", coded)
        made.register_parameter("bias", linear.bias)
        made.train(linear.training)
        return made

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        input = input.to(dtype)
        y: Tensor = _Product.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for part in _PARTS:
            destination[f"{prefix}weight.{part}"] = getattr(self.weight, part).detach()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        names = [f"{prefix}weight.{part}" for part in _PARTS]
        if f"{prefix}weight" in state_dict and not any(name in state_dict for name in names):
            parts = list(_nearest(state_dict[f"{prefix}weight"]))
        else:
            missing_keys += [name for name in names if name not in state_dict]
            parts = [state_dict[name] for name in names if name in state_dict]
        if len(parts) == len(_PARTS):
            for name, part, held in zip(names, parts, (self.weight.codes, self.weight.scales), strict=True):
                if part.shape != held.shape or part.dtype != held.dtype:
                    error_msgs.append(
                        f"`{name}` must be {tuple(held.shape)} {held.dtype}, got {tuple(part.shape)} {part.dtype}"
                    )
                else:
                    with torch.no_grad():
                        held.copy_(part)
        if self.bias is not None and f"{prefix}bias" in state_dict:
            with torch.no_grad():
                self.bias.copy_(state_dict[f"{prefix}bias"])
        elif self.bias is not None:
            missing_keys.append(f"{prefix}bias")
        known = {*names, f"{prefix}weight", f"{prefix}bias"}
        unexpected_keys += [name for name in state_dict if strict and name.startswith(prefix) and name not in known]


class _Product(torch.autograd.Function):
    """x W^T in the dtype of x. What is kept for the way back is x and the codes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Int8Weight) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return x @ weight.decoded(x.dtype).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_x = grad @ weight.decoded(x.dtype)
            if ctx.needs_input_grad[1]:
                of_weight = grad.flatten(0, -2).mT @ x.flatten(0, -2)  # autograd gives it the weight's dtype
        return of_x, of_weight


def _nearest(value: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales; ties go to the upper code, as in the core."""
    flat = value.float().reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(dim=1) / _LARGEST
    steps = torch.where(scales[:, None] > 0, padded / scales[:, None], 0.0)
    codes = (steps + 0.5).floor().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return codes.view(-1)[: len(flat)].view(value.shape).clone(), scales


def _runs(size: int, count: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _rebuilt(codes: Tensor, scales: Tensor, dtype: torch.dtype, requires_grad: bool, is_param: bool) -> Int8Weight:
    made = Int8Weight(codes, scales, dtype)
    found: Int8Weight = nn.Parameter(made, requires_grad) if is_param else made.requires_grad_(requires_grad)  # type: ignore[assignment]
    return found


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that `func` writes into, lists taken apart."""
    found: list[Any] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, (list, tuple)) else [value]
    return found


def _detached(weight: Int8Weight) -> Int8Weight:
    return Int8Weight(weight.codes, weight.scales, weight.dtype)


def _cloned(weight: Int8Weight, **_: Any) -> Int8Weight:
    return Int8Weight(weight.codes.clone(), weight.scales.clone(), weight.dtype)


def _moved(weight: Int8Weight, **options: Any) -> Int8Weight:
    """On another device or of another dtype; the codes are the same."""
    device = options.get("device") or weight.device
    copied = [part.to(device, copy=True) for part in (weight.codes, weight.scales)]
    return Int8Weight(copied[0], copied[1], options.get("dtype") or weight.dtype)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(target, Int8Weight):
        return target.copy_(source.decoded() if isinstance(source, Int8Weight) else source)
    parts = (source.codes, source.scales) if isinstance(source, Int8Weight) else _nearest(source.expand(target.shape))
    for held, part in zip((target.codes, target.scales), parts, strict=True):
        held.copy_(part)
    return target


_OWN: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _detached,
    _aten.clone.default: _cloned,
    _aten._to_copy.default: _moved,
    _aten.copy_.default: _copied,
}
