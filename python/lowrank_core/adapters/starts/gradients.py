"""Gradients of base weights, summed over batches: what some starts look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank_core.adapters.progress import progress
from lowrank_core.adapters.quantized import is_quantized
from lowrank_core.adapters.starts.start import OP, Settings, Target


def summed_gradients(
    model: nn.Module, targets: list[Target], settings: Settings
) -> Iterator[tuple[list[Target], list[Tensor]]]:
    """Some targets at a time, and for each the sum over batches of the gradient at W0: [m, n], float32 or float64.

    Directions and signs are looked at, which the sum shares with the mean.

    The adapters act as if they were absent, and the model evaluates, without dropout. A gradient is taken and freed as
    soon as backward has made it; the sums of the `at_once` weights are held, and of all if that is None. The batches
    are gone through once for each part.

    Raises:
      ValueError: no batch, a loss that is no scalar, a weight without a gradient, or one that is not finite.
    """
    parts = _parts(targets, settings.at_once)
    batches: Any = settings.batches
    if len(parts) > 1 and iter(batches) is batches:
        batches = list(batches)
    for part in parts:
        params = list(dict.fromkeys(target.weight.param for target in part))
        sums = _sums(model, targets, params, batches, settings.loss_fn)
        for target in part:
            if target.weight.param not in sums:
                raise ValueError(f"{OP}: `batches` must reach every adapted layer, got no gradient for {target.name}")
        found = [target.weight.matrix_of(sums[target.weight.param]) for target in part]
        named = [(target.name, gradient) for target, gradient in zip(part, found, strict=True)]
        settings.search.require_finite("model", "gradients", named)
        yield part, found


def run(model: nn.Module, batch: Any, loss_fn: Callable[[nn.Module, Any], Tensor] | None) -> Any:
    """What `loss_fn` returns; by default the outputs of the model."""
    if loss_fn is not None:
        return loss_fn(model, batch)
    if not hasattr(batch, "keys"):
        raise TypeError(
            f"{OP}: `batches` must be dicts of arguments of `model`, got {type(batch).__name__}; "
            "give `loss_fn(model, batch)`"
        )
    device = next(model.parameters()).device
    return model(**{key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()})


def _loss(model: nn.Module, batch: Any, loss_fn: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    loss = run(model, batch, loss_fn)
    loss = loss if loss_fn is not None else getattr(loss, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"{OP}: `loss_fn` must return a loss of one number, got {type(loss).__name__}; give another")
    return loss


def _sums(
    model: nn.Module,
    targets: list[Target],
    params: list[Tensor],
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
) -> dict[Tensor, Tensor]:
    sums: dict[Tensor, Tensor] = {}

    def add(param: Tensor, grad: Tensor) -> None:
        if param in sums:
            sums[param] += grad
        else:
            sums[param] = grad.to(torch.promote_types(grad.dtype, torch.float32))

    def take(param: Tensor) -> None:
        grad = cast(Tensor, param.grad)
        param.grad = None
        add(param, grad.to_dense() if grad.is_sparse else grad)

    read = {target.weight.param: target.weight.codes for target in targets}
    codes = {param: layer for param in params if (layer := read[param]) is not None}
    others = [param for param in params if param not in codes]
    count = 0
    with (
        evaluating(model), without_adapters(targets), _only(model, others, take), _products(codes, add),
        torch.enable_grad(),
    ):  # fmt: skip
        for batch in progress(batches, "gradients"):
            _loss(model, batch, loss_fn).backward()  # type: ignore[no-untyped-call]
            count += 1
    require_batches(count)
    return sums


def require_batches(count: int) -> None:
    """Raises ValueError where there was none."""
    if count == 0:
        raise ValueError(f"{OP}: `batches` must have a batch or more, got none")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation; afterwards as it was.

    Layers of codes train, which makes no difference to what they compute: bitsandbytes orders codes in another way at
    the first evaluation on a host, and no gradient passes the layer from then on.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = is_quantized(getattr(module, "weight", None))
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def without_adapters(targets: list[Target]) -> Iterator[None]:
    """The scale of every pair is 0."""
    scales = [(target.pair, target.pair.scale) for target in targets]
    try:
        for pair, _ in scales:
            _set_scale(pair.module, pair.adapter, 0.0)
        yield
    finally:
        for pair, scale in scales:
            _set_scale(pair.module, pair.adapter, scale)


def _set_scale(module: Any, adapter: str | None, scale: float) -> None:
    if adapter is None:
        module.scaling = scale
    else:
        module.scaling[adapter] = scale


@contextmanager
def _only(model: nn.Module, params: list[Tensor], take: Callable[[Tensor], None]) -> Iterator[None]:
    """Gradients for `params` alone, each handed to `take` when it is there."""
    states = [(param, param.requires_grad, param.grad) for param in model.parameters()]
    handles: list[Any] = []
    try:
        for param, _, _ in states:
            param.requires_grad_(False)
        for taken in params:
            taken.grad = None
            handles.append(cast(Any, taken.requires_grad_(True)).register_post_accumulate_grad_hook(take))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for param, required, grad in states:
            param.requires_grad_(required)
            param.grad = grad


@contextmanager
def _products(layers: Mapping[Tensor, nn.Module], add: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """What autograd has no gradient of, a weight of codes: for each call of its layer dyᵀ x [out, in] is added."""

    def watching(param: Tensor) -> Callable[..., None]:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            wide = torch.promote_types(x.dtype, torch.float32)

            def product(grad: Tensor) -> None:
                add(param, grad.flatten(0, -2).to(wide).mT @ x.flatten(0, -2).to(wide))

            if not output.requires_grad:  # nothing before this layer asks for a gradient
                output.requires_grad_(True)
            cast(Any, output).register_hook(product)

        return see

    handles = [layer.register_forward_hook(watching(param)) for param, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(targets: list[Target], at_once: int | None) -> list[list[Target]]:
    """Targets of `at_once` weights at a time; those that share a weight, as experts do, stay together."""
    by_param: dict[Tensor, list[Target]] = {}
    for target in targets:
        by_param.setdefault(target.weight.param, []).append(target)
    groups = list(by_param.values())
    size = len(groups) if at_once is None else at_once
    return [[t for group in groups[i : i + size] for t in group] for i in range(0, len(groups), size)]
