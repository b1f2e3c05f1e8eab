"""The diagonal Kalman step against its composition in plain torch, and against reading the Jacobian twice.

The composition is what a torch user would write: H∘p, H (H∘p)ᵀ, one solve for the gain, the gain times the residual,
p - p ∘ rowsum(K ∘ Hᵀ), all in float32. Reading is torch's sum over the Jacobian, twice. `kalman_diag_step_` works in
place and in float64. Also: the variances that the composition loses where p / R is large, and what the rows cost.

    python bench/bench_kalman_diag.py [--threads 2] [--rounds 25] [--isa avx512]
"""

from __future__ import annotations

import argparse
from typing import Any

import lowrank_core as lc
import torch
from _harness import Bench, Row
from lowrank_core import _core, adapters
from torch import Tensor, nn

N = 10**6
CASES = (2, 10, 32)  # outputs
COUNTED = 10
TARGETS = {"of the composition": 0.10, "of reading twice": 4.0}


def composition(theta: Tensor, p: Tensor, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """For R = I."""
    weighted = h * p
    s = torch.eye(h.shape[0]) + weighted @ h.mT
    solved = torch.linalg.solve(s, weighted)  # Kᵀ
    return theta + e @ solved, p - (solved * weighted).sum(0)


def exact(theta: Tensor, p: Tensor, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    theta, p, h, e = (a.double() for a in (theta, p, h, e))
    weighted = h * p
    solved = torch.linalg.solve(torch.eye(h.shape[0], dtype=torch.float64) + weighted @ h.mT, weighted)
    return e @ solved, p - (solved * weighted).sum(0)


def step(bench: Bench, m: int) -> dict[str, Row]:
    torch.manual_seed(m)
    # theta = 0, so that its storage in float32 does not hide the error of its change.
    theta, p, h, e = torch.zeros(N), 0.01 * torch.rand(N), torch.randn(m, N) / m, torch.randn(m)
    score = e @ h
    delta, after = exact(theta, p, h, e)
    place = theta.clone(), p.clone()

    def error(answer: Any) -> float:
        moved, variance = answer[0].double(), answer[1].double()
        return max(float((moved - delta).norm() / delta.norm()), float((variance - after).norm() / after.norm()))

    def in_place() -> bool:
        return lc.kalman_diag_step_(*place, h, score, lr=0.0)

    rivals = {
        "torch composition": lambda: composition(theta, p, h, e),
        "reading twice": lambda: h.sum() + h.sum(),
        "kalman_diag_step": lambda: tuple(lc.kalman_diag_step(theta, p, h, score)),
        "kalman_diag_step_": in_place,
    }
    # 1e-3 tells a right step in float32, at a condition number of S of 1e3, from a wrong one.
    return bench.compare(
        f"m={m}, n={N}",
        rivals,
        baseline="torch composition",
        error=dict.fromkeys(("torch composition", "kalman_diag_step"), error),  # of those that give new arrays
        limit=1e-3,
        flops=float(N) * (2 * m * m + 8 * m),
        nbytes=float(N) * (8 * m + 24),
    )


def lost_variances() -> dict[str, float]:
    """Share of variances <= 0 after one float32 step, by the composition and by ours."""
    lost = {"torch composition": 0, "kalman_diag_step": 0}
    total = 0
    for m, n, p0, r in ((4, 4, 1e4, 1e-4), (16, 12, 1e2, 1e-4), (16, 40, 1e4, 1e-2), (10, 300, 1.0, 1e-2)):
        for seed in range(30):
            torch.manual_seed(seed)
            h, p = torch.randn(m, n) / r**0.5, torch.full((n,), p0)
            zero = torch.zeros(n)
            lost["torch composition"] += int((~(composition(zero, p, h, torch.zeros(m))[1] > 0)).sum())
            lost["kalman_diag_step"] += int((~(lc.kalman_diag_step(zero, p, h, zero).p > 0)).sum())
            total += n
    return {name: count / total for name, count in lost.items()}


def adapted(width: int, rank: int, outputs: int) -> tuple[nn.Module, list[Tensor]]:
    """Six frozen layers with LoRA adapters beside them, and a frozen head."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(width, width).requires_grad_(False)
            self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.base(x) + self.b(self.a(x)))

    model = nn.Sequential(*(Layer() for _ in range(6)), nn.Linear(width, outputs).requires_grad_(False))
    return model, [p for p in model.parameters() if p.requires_grad]


def rows(bench: Bench, m: int) -> dict[str, Row]:
    """All rows of a batch of one sequence of 32 tokens, against one backward pass for the adapters' gradients."""
    torch.manual_seed(0)
    model, params = adapted(512, 8, m)
    x = torch.randn(32, 512)
    wanted = adapters.jacobian_rows(model(x).mean(0), params)

    def taped(batched: bool) -> list[Tensor]:
        with adapters.record_linears(model) as tape:
            outputs = model(x).mean(0)
        return adapters.jacobian_rows(outputs, params, tape=tape, chunk=16, batched=batched)

    def functional() -> list[Tensor]:
        named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        call = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (x,)).mean(0))
        return list(call(named).values())

    def error(answer: Any) -> float:
        return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(answer, wanted, strict=True))

    return bench.compare(
        f"rows m={m}, 6 x 512, rank 8",
        {
            "one gradient": lambda: torch.autograd.grad(model(x).mean(0).sum(), params),
            "jacobian_rows, tape": lambda: taped(False),
            "jacobian_rows, batched": lambda: taped(True),
            "jacobian_rows": lambda: adapters.jacobian_rows(model(x).mean(0), params),
            "torch.func.jacrev": functional,
        },
        baseline="torch.func.jacrev",
        error=dict.fromkeys(
            ("jacobian_rows, tape", "jacobian_rows, batched", "jacobian_rows", "torch.func.jacrev"), error
        ),
        limit=1e-4,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    parser.add_argument("--seconds", type=float, default=6.0, help="time that one case may take")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    if options.isa:
        _core.set_isa(options.isa)

    bench = Bench("bench_kalman_diag", rounds=options.rounds, seconds=options.seconds, threads=options.threads)
    found = {m: step(bench, m) for m in CASES}
    for m in (2, 10):
        rows(bench, m)
    shares = {}
    for name, rival in (("in place", "kalman_diag_step_"), ("new arrays", "kalman_diag_step")):
        counted = found[COUNTED]
        shares[f"{name}, of the composition"] = 1 / counted[rival].speed_vs_baseline
        shares[f"{name}, of reading twice"] = (
            counted["reading twice"].speed_vs_baseline / counted[rival].speed_vs_baseline
        )
    for name, share in shares.items():
        target = TARGETS[name.partition(", ")[2]]
        print(f"m={COUNTED}, {name}: {share:.3f}, {'reaches' if share <= target else 'MISSES'} {target}")
    lost = lost_variances()
    print(f"variances lost in float32 where p / R is large: {lost}")
    bench.finish(isa=_core.isa(), shares=shares, targets=TARGETS, lost_variances=lost)


if __name__ == "__main__":
    main()
