"""What the benches of optimizers of pairs share: the models, the gradients, the error of what was stepped, the loop."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
from _harness import Bench, peer
from torch import Tensor, nn

CASES = {  # pairs, size of the layers, rank, dtype
    "48 pairs of 576, rank 8": (48, 576, 8, torch.float32),
    "48 pairs of 576, rank 16": (48, 576, 16, torch.float32),
    "48 pairs of 576, rank 16, bf16": (48, 576, 16, torch.bfloat16),
    "8 pairs of 2048, rank 64": (8, 2048, 64, torch.float32),
    "4 pairs of 64, rank 4": (4, 64, 4, torch.float32),
}
KEYS = {"lr": 1e-3, "weight_decay": 0.0}
# Weights of order 1 are rounded three times, against changes of 3e-3; what the solves add is less. In bfloat16 a weight
# hardly takes such a change, so that only both errors side by side say something.
LIMITS = {torch.float32: 3 * 2.0**-24 / 3e-3, torch.bfloat16: 1.0}
OURS = "ours"
_STEPS = 3  # by which the error is measured
_SPARE = 5  # calls besides the timed ones

Step = Callable[[nn.Module], Callable[[], object]]  # of a model: what steps it, given its gradients


def measure(name: str, about: str | None, rivals: dict[str, Step], baseline: str, checked: tuple[str, ...]) -> None:
    """Runs the bench: `rivals` make the steps, those `checked` are compared with `baseline` in float64."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(name, rounds=options.rounds, threads=options.threads)
    for case, (count, size, rank, dtype) in CASES.items():
        model = adapted(count, size, rank, dtype)
        exact = _moved(copy.deepcopy(model).double(), rivals[baseline])

        def apart(rival: str, model: nn.Module = model, exact: Tensor = exact) -> float:
            return float((_moved(model, rivals[rival]) - exact).norm() / exact.norm())

        errors = {rival: lambda _, rival=rival, apart=apart: apart(rival) for rival in checked}
        calls = {rival: _fed(copy.deepcopy(model), make, options.rounds + _SPARE) for rival, make in rivals.items()}
        bench.compare(case, calls, baseline=baseline, error=errors, limit=LIMITS[dtype])
    bench.finish()


def adapted(count: int, size: int, rank: int, dtype: torch.dtype) -> nn.Module:
    """Layers under the names that PEFT's optimizer looks for, both factors drawn."""
    lora = peer("peft")
    torch.manual_seed(0)
    config = lora.LoraConfig(r=rank, target_modules=[str(i) for i in range(count)], init_lora_weights=False)
    net = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(count)))
    model: nn.Module = lora.get_peft_model(net, config).to(dtype)
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Both factors of every pair."""
    return [p for p in model.parameters() if p.requires_grad]


def _fed(model: nn.Module, make: Step, calls: int) -> Callable[[], list[nn.Parameter]]:
    """A step with gradients of its own each time, as some change them in place; they are made before."""
    params, draw = trained(model), torch.Generator().manual_seed(1)
    grads = [torch.randn(p.shape, generator=draw).to(p.dtype) for p in params]
    copies: Iterator[list[Tensor]] = iter([[grad.clone() for grad in grads] for _ in range(calls)])
    step = make(model)

    def call() -> list[nn.Parameter]:
        for p, grad in zip(params, next(copies), strict=True):
            p.grad = grad
        step()
        return params

    return call


def _moved(model: nn.Module, make: Step) -> Tensor:
    """The change of all weights, float64."""
    own = copy.deepcopy(model)
    before = [p.detach().double().clone() for p in trained(own)]
    step = _fed(own, make, _STEPS)
    after = [step() for _ in range(_STEPS)][-1]
    return torch.cat([(p.detach().double() - old).flatten() for p, old in zip(after, before, strict=True)])
