"""Writes the golden states: `python tests/golden/make_states.py`.

A file holds what an optimizer saved after four steps, the weights at that moment, the gradients of the next five
steps and the weights after each of these. A refresh falls into them. tests/optim/test_golden_states.py loads every file
into the optimizer of the day and takes the five steps again.

THESE FILES ARE NEVER WRITTEN AGAIN. A state that was saved once must load and go on as it did for as long as its format
is read, so a file that exists is left alone. A new format, release or optimizer gets new files beside the old ones,
under new names. A test that fails is a change of what users' checkpoints mean: it is the code that goes back, or the
format that goes up.

In a file (torch.save, tensors and plain numbers only):

  method             its name; left out in files of format 1, which are GaLoreAdamW's
  written_with       versions, the kind of the processor and of its square roots, and the commit of the code
  keys               of the constructor
  optimizer          state_dict() after the first steps
  weights            at that moment
  gradients, after   for each weight one tensor [5, *shape]: of the next steps, and the weight after each
  conditions         what the error of another machine is judged by; see tests/testing/golden.py

The bits are those of any x86-64 processor: the kernels and torch run without vectors of AVX and without fused products.
The betas are short binary fractions: their powers are exact, whatever the C library. Only where torch takes square
roots (weights that are not projected, or on both sides) MKL may give others elsewhere: `square_root` tells them apart.
"""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lowrank_core
import torch
from lowrank_core.memory.storage import FORMAT
from lowrank_core.optim import METHODS
from testing import golden
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
RANK, BEFORE, AFTER = 4, 4, 5
KEYS = {
    "lr": 0.05,
    "betas": (0.875, 0.9375),
    "weight_decay": 0.1,
    "rank": RANK,
    "update_proj_gap": 3,
    "scale": 1.0,
    "seed": 11,
}
MOMENTUM: dict[str, Any] = {"momentum": 0.75, "plain_betas": KEYS["betas"]}  # of methods without betas
LEFT, RIGHT, CONV, VECTOR, PLAIN = (9, 16), (16, 9), (8, 4, 2, 2), (7,), (3, 11)
TWO_BLOCKS = (8, 72)  # moments of more than 256 elements


@dataclass(frozen=True)
class Case:
    """One file. `zeros`: for each weight the number of steps at the start in which its gradient is zero."""

    name: str  # of the file
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    keys: dict[str, Any] = field(default_factory=dict)
    zeros: tuple[int, ...] = ()
    method: str = "galore"

    @property
    def all_keys(self) -> dict[str, Any]:
        """Of its constructor."""
        known = inspect.signature(METHODS[self.method]).parameters
        return {key: value for key, value in {**KEYS, **self.keys}.items() if key in known}

    @property
    def format(self) -> int:
        """Of its states, which the name says."""
        return int(self.name.partition("-format")[2].partition("-")[0])


CASES = [
    Case("galore_adamw-format1-float32", (LEFT, RIGHT, CONV, VECTOR, PLAIN)),
    Case("galore_adamw-format1-float64", (LEFT, RIGHT, VECTOR), torch.float64),
    Case("galore_adamw-format1-bfloat16", (LEFT, RIGHT, CONV, VECTOR, PLAIN), torch.bfloat16, {"rounding": "nearest"}),
    Case(
        "galore_adamw-format1-bfloat16-stochastic",
        (LEFT, RIGHT, CONV, VECTOR, PLAIN),
        torch.bfloat16,
        {"rounding": "stochastic"},
    ),
    Case("galore_adamw-format1-int8", (TWO_BLOCKS, RIGHT, VECTOR), keys={"moment_dtype": "int8"}),
    Case("galore_adamw-format1-full", (LEFT, RIGHT), keys={"proj_type": "full"}),
    Case("galore_adamw-format1-rotate", (LEFT, RIGHT), keys={"moments": "rotate"}),
    Case("galore_adamw-format1-zeros", (LEFT, RIGHT, LEFT), zeros=(BEFORE, BEFORE, 0)),
    Case("galore_adamw-format1-longer-zeros", (LEFT, RIGHT, RIGHT), zeros=(BEFORE + 2, BEFORE + 2, 0)),
    Case("galore-format2-float32", (LEFT, RIGHT, CONV, VECTOR, PLAIN)),
    Case("galore-format2-stagger", (LEFT, RIGHT, LEFT), keys={"stagger": True}),
    Case("galore-format2-eight", (LEFT, RIGHT) * 4, keys={"update_proj_gap": 8}),  # which take turns by default
    Case("galore-format2-lion", (LEFT, RIGHT), keys={"rule": "lion", "moment_dtype": "int8"}),
    Case("galore-format2-adabelief", (LEFT, RIGHT), torch.bfloat16, {"rule": "adabelief"}),
    Case("galore-format2-adafactor", (LEFT, RIGHT, CONV), keys={"rule": "adafactor"}),
    Case("qgalore-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys={"queue_size": 2}, method="qgalore"),
    Case(
        "qgalore-format2-bfloat16",
        (LEFT, RIGHT),
        torch.bfloat16,
        {"moment_dtype": "auto", "cos_threshold": 2.0, "moments": "rotate"},
        method="qgalore",
    ),
    Case("fira-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys={"scale": 0.5}, method="fira"),
    Case("fira-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"residual": "code", "scale": 0.5}, method="fira"),
    Case("apollo-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="apollo"),
    Case("frugal-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="frugal"),
    Case("frugal-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"subspace": "random"}, method="frugal"),
    Case("frugal-format2-block", (LEFT, RIGHT, LEFT), keys={"subspace": "block", "density": 0.4}, method="frugal"),
    Case("scale-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="scale"),
    Case("scale-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"momentum": 0.75}, method="scale"),
    Case("sinkgd-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="sinkgd"),
    Case("sinkgd-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"iterations": 3}, method="sinkgd"),
    Case("apollo-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"limiter": None}, method="apollo"),
    Case("adarankgrad-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="adarankgrad"),
    Case("adarankgrad-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"energy": 0.5}, method="adarankgrad"),
    Case("ldadam-format2-float32", (LEFT, RIGHT, CONV, VECTOR), method="ldadam"),
    Case("ldadam-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"rho": 0.5}, method="ldadam"),
    Case("flora-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys={"kappa": 3}, method="flora"),
    Case("flora-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"kappa": 4}, method="flora"),
    Case("coap-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys={"reproject_factor": 2}, method="coap"),
    Case("coap-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"eq5": "normalized"}, method="coap"),
    Case("dct-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys={"update_proj_gap": 1}, method="dct"),
    Case("dct-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {"basis": "dct3"}, method="dct"),
    Case("trion-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys=MOMENTUM, method="trion"),
    Case("trion-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {**MOMENTUM, "norm_ord": 1}, method="trion"),
    Case("dion2-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys=MOMENTUM, method="dion2"),
    Case("dion2-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {**MOMENTUM, "fraction": 0.5}, method="dion2"),
    Case("muon-format2-float32", (LEFT, RIGHT, CONV, VECTOR), keys=MOMENTUM, method="muon"),
    Case("muon-format2-bfloat16", (LEFT, RIGHT), torch.bfloat16, {**MOMENTUM, "nesterov": False}, method="muon"),
]


def gradients(case: Case, number: int) -> Tensor:
    """[steps, *shape]: four clear directions, which turn on the shorter side and do not on the longer one, and noise.

    Directions of unlike weight and entries of like size keep the steps well conditioned: another machine's roundings
    stay small in them. On the longer side they are Walsh functions, whose entries are 1 and -1.
    """
    shape = case.shapes[number]
    draw = torch.Generator().manual_seed(100 + number)
    m, n = (shape[0], int(torch.Size(shape[1:]).numel())) if len(shape) > 1 else (1, shape[0])
    short, long, r = min(m, n), max(m, n), min(RANK, min(m, n) // 2)
    frame = torch.linalg.qr(torch.randn(short, short, generator=draw, dtype=torch.float64))[0]
    walsh = torch.tensor([[(-1.0) ** (k & j).bit_count() for j in range(long)] for k in range(1, RANK + 1)]).double()
    phase = 6 * torch.rand(RANK, long, generator=draw, dtype=torch.float64)
    sizes = 0.8 ** torch.arange(RANK, dtype=torch.float64)[:, None]
    steps = []
    for step in range(BEFORE + AFTER):
        turned = frame[:, :RANK] if r < RANK else turn(frame[:, :RANK], frame[:, RANK : 2 * RANK], 0.25 * step)
        rows = (sizes * walsh * (1 + 0.15 * torch.sin(step + phase)))[: turned.shape[1]]
        whole = turned @ rows + 0.02 * torch.randn(short, long, generator=draw, dtype=torch.float64)
        whole = whole * (1 + 0.25 * torch.cos(torch.tensor(1.3 * step)))
        steps.append((whole if m <= n else whole.mT).reshape(shape))
    stack = torch.stack(steps)
    stack[: case.zeros[number] if case.zeros else 0] = 0
    return stack.to(case.dtype)


def turn(first: Tensor, second: Tensor, angle: float) -> Tensor:
    """`first`, turned towards as much of `second` as there is."""
    turned = first.clone()
    k = second.shape[1]
    c, s = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    turned[:, :k] = c * first[:, :k] + s * second
    return turned


def initial(case: Case, number: int) -> Tensor:
    draw = torch.Generator().manual_seed(number)
    return (0.1 * torch.randn(case.shapes[number], generator=draw, dtype=torch.float64)).to(case.dtype)


def make(case: Case) -> golden.Golden:
    weights = [nn.Parameter(initial(case, number)) for number in range(len(case.shapes))]
    kind: Any = METHODS[case.method]
    optimizer = kind(weights, **case.all_keys)
    every = [gradients(case, number) for number in range(len(case.shapes))]
    golden.take(weights, optimizer, [stack[:BEFORE] for stack in every])
    made: golden.Golden = {
        "method": case.method,
        "written_with": versions(case),
        "keys": case.all_keys,
        "optimizer": optimizer.state_dict(),
        "weights": [weight.detach().clone() for weight in weights],
        "gradients": [stack[BEFORE:].clone() for stack in every],
    }
    made["conditions"] = conditions(made)
    made["after"] = golden.replay(made)
    return made


def conditions(made: golden.Golden) -> dict[str, float]:
    """`gap`: s_1 / min (s_i - s_i+1), i <= rank, of a gradient; `spread`: the largest norm of a column of a gradient
    (a row where the basis is on the right; an entry where there is none) over the root of an entry of v."""
    weights, optimizer = golden.fresh(made)
    optimizer.load_state_dict(made["optimizer"])
    gap = spread = 1.0
    for step in range(AFTER):
        golden.take(weights, optimizer, [stack[step : step + 1] for stack in made["gradients"]])
        for state, stack in zip((optimizer.state[weight] for weight in weights), made["gradients"], strict=True):
            grad = stack[step].double()
            if not grad.any() or "rule" in made["keys"]:  # of whose errors there is no bound
                continue
            if not any(
                key.startswith("exp_avg_sq") and value.numel() for key, value in state.items()
            ):  # nothing is divided by v
                continue
            if "proj.rank" not in state:
                spread = max(spread, float(grad.abs().max() / roots(state).min()))
                continue
            grad = grad.flatten(1)
            values = torch.linalg.svdvals(grad)
            gap = max(gap, float(values[0] / -values.diff()[:RANK].max()))
            across = 1 if grad.shape[0] > grad.shape[1] else 0
            spread = max(spread, float(grad.norm(dim=across).max() / roots(state).min()))
    return {"gap": gap, "spread": spread}


def roots(state: dict[str, Any]) -> Tensor:
    """The roots of the entries of v, decoded."""
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"].double().sqrt()
    codes = state["exp_avg_sq.codes"].double().flatten()
    return codes * state["exp_avg_sq.scales"].double().repeat_interleave(256)[: codes.numel()]


def versions(case: Case) -> dict[str, str]:
    return {
        "lowrank_core": lowrank_core.__version__,
        "torch": str(torch.__version__),
        "square_root": golden.square_root(),
        "processor": platform.machine(),
        "commit": git("rev-parse", "HEAD"),
    }


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    if git("status", "--porcelain", "python", "cpp"):
        sys.exit("python/ and cpp/ must be as committed: the files name the commit that wrote them")
    golden.check_level()
    for case in CASES:
        path = golden.FOLDER / f"{case.name}.pt"
        if path.exists() or case.format != FORMAT:
            print(f"{path.name}: exists, or is of an older format: left alone")  # noqa: T201
            continue
        torch.save(make(case), path)
        print(f"{path.name}: {path.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in golden.ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **golden.ENVIRONMENT})
    main()
