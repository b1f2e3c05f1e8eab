"""A step of ScaledAdamW against PEFT's `create_riemannian_optimizer(model, torch.optim.AdamW)` with the same pairs.

Times are of whole `step()` calls. PEFT scales `.grad` in place, so each call gets copies of the gradients that were
made before. The error is that of the change of all weights in three steps, as Frobenius norms, to PEFT's optimizer in
float64. AdamW without any scaling is there for its time alone.

    python bench/bench_scaled_adamw.py [--threads 2] [--rounds 25]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from _harness import Bench, peer
from lowrank_core.adapters import ScaledAdamW
from torch import Tensor, nn

CASES = {  # pairs, size of the layers, rank, dtype
    "48 pairs of 576, rank 8": (48, 576, 8, torch.float32),
    "48 pairs of 576, rank 16": (48, 576, 16, torch.float32),
    "48 pairs of 576, rank 16, bf16": (48, 576, 16, torch.bfloat16),
    "8 pairs of 2048, rank 64": (8, 2048, 64, torch.float32),
    "4 pairs of 64, rank 4": (4, 64, 4, torch.float32),
}
KEYS = {"lr": 1e-3, "weight_decay": 0.0}
REG = 1e-2
SPARE = 5  # calls besides the timed ones
PEFT, PLAIN, OURS = "PEFT", "AdamW unscaled", "ours"
# Weights of order 1 are rounded three times, against changes of 3e-3; what the solves add is less. In bfloat16 a weight
# hardly takes such a change, so that only both errors side by side say something.
LIMITS = {torch.float32: 3 * 2.0**-24 / 3e-3, torch.bfloat16: 1.0}


def adapted(count: int, size: int, rank: int, dtype: torch.dtype) -> nn.Module:
    """Layers under the names that PEFT's optimizer looks for, both factors drawn."""
    lora = peer("peft")
    torch.manual_seed(0)
    config = lora.LoraConfig(r=rank, target_modules=[str(i) for i in range(count)], init_lora_weights=False)
    net = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(count)))
    model: nn.Module = lora.get_peft_model(net, config).to(dtype)
    return model


def stepping(model: nn.Module, rival: str, calls: int) -> Callable[[], list[Tensor]]:
    params = [p for p in model.parameters() if p.requires_grad]
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(p.shape, generator=draw).to(p.dtype) for p in params]
    copies = [[grad.clone() for grad in grads] for _ in range(calls)]
    if rival == PLAIN:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, **KEYS)
    elif rival == OURS:
        optimizer = ScaledAdamW(model, reg=REG, **KEYS)
    else:
        optimizer = peer("peft.optimizers").create_riemannian_optimizer(model, torch.optim.AdamW, reg=REG, **KEYS)

    def step() -> list[Tensor]:
        for p, grad in zip(params, copies.pop(), strict=True):
            p.grad = grad
        optimizer.step()
        return params

    return step


def moved(model: nn.Module, rival: str, steps: int = 3) -> Tensor:
    """The change of all weights, float64."""
    own = copy.deepcopy(model)
    before = [p.detach().double().clone() for p in own.parameters() if p.requires_grad]
    step = stepping(own, rival, steps)
    after = [step() for _ in range(steps)][-1]
    return torch.cat([(p.detach().double() - old).flatten() for p, old in zip(after, before, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench("bench_scaled_adamw", rounds=options.rounds, threads=options.threads)
    for case, (count, size, rank, dtype) in CASES.items():
        model = adapted(count, size, rank, dtype)
        exact = moved(copy.deepcopy(model).double(), PEFT)

        def apart(rival: str, model: nn.Module = model, exact: Tensor = exact) -> float:
            return float((moved(model, rival) - exact).norm() / exact.norm())

        errors = {rival: lambda _, rival=rival, apart=apart: apart(rival) for rival in (PEFT, OURS)}
        rivals = {rival: stepping(copy.deepcopy(model), rival, options.rounds + SPARE) for rival in (PEFT, PLAIN, OURS)}
        bench.compare(case, rivals, baseline=PEFT, error=errors, limit=LIMITS[dtype])
    bench.finish()


if __name__ == "__main__":
    main()
