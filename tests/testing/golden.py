"""Golden states: what an optimizer of an older version saved, and the weights after the steps that it took next.

`python -m testing.golden`, in a process with `ENVIRONMENT`, prints as JSON which weights of which file come out
otherwise.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from lowrank_core import _core
from lowrank_core.memory.geometry import WHOLE
from lowrank_core.optim import METHODS, LowRankOptimizer
from torch import Tensor, nn

from testing import tolerance

RULES = ("lion", "adabelief", "adafactor")
FOLDER = Path(__file__).resolve().parents[1] / "golden"
FILES = sorted(FOLDER.glob("*.pt"))
# `bound` is that of GaLore by Adam: others read G itself, too, or take a sign.
BOUNDED = [path for path in FILES if path.stem.startswith("galore") and not path.stem.endswith(RULES)]
X86_64 = ("x86_64", "AMD64")

# Only code that every x86-64 processor runs alike: the kernels' level and torch's without vectors of AVX and without
# fused products. An exception remains: torch's square root is MKL's, see `square_root`.
ENVIRONMENT = {
    "LOWRANK_CORE_ISA": "generic",
    "ATEN_CPU_CAPABILITY": "default",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

# How far apart two neighbours are in which moments are stored, m and then the root of v: relative to themselves in
# bfloat16, to the largest of a block in 8 bits.
_CODE = {"float32": 0.0, "bfloat16": 2.0**-7 + 2.0**-8, "int8": 1 / 127 + 1 / 255}

Golden = dict[str, Any]


def check_level() -> None:
    """Raises RuntimeError where the process does not run what every x86-64 processor runs alike."""
    level, torchs = _core.isa(), torch.backends.cpu.get_cpu_capability()
    plain = torchs in ("DEFAULT", "NO AVX")  # the latter by old torches
    if level != "generic" or not plain or torch.get_num_threads() != 1:
        raise RuntimeError(
            f"level {level}, torch's {torchs}, {torch.get_num_threads()} threads: set {ENVIRONMENT} before the start"
        )


def load(path: Path) -> Golden:
    golden: Golden = torch.load(path, weights_only=True)
    return golden


def square_root() -> str:
    """A hash of some of torch's square roots. They may be MKL's, which are off by a unit now and then, on other numbers
    by another processor, and no variable of the environment makes them alike."""
    draw = torch.Generator().manual_seed(0)
    roots = [torch.rand(4096, generator=draw, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    found = hashlib.sha256()
    for numbers in (part for root in roots for part in (root, root[:7], root[:33])):
        found.update(numbers.sqrt().numpy().tobytes())
    return found.hexdigest()[:16]


def alike(golden: Golden) -> bool:
    """True on an x86-64 processor with the release of torch that wrote `golden`; builds of it (say +cpu) are alike."""
    ours, theirs = torch.__version__, golden["written_with"]["torch"]
    return platform.machine() in X86_64 and _release(ours) == _release(theirs)


def by_kernel(golden: Golden, number: int) -> bool:
    """True for a weight that a kernel alone steps: a projected one, with a basis on one side, by a rule that it has."""
    ruled = golden["keys"].get("rule") in ("adabelief", "adafactor")
    method = golden.get("method", "galore")
    ruled |= method == "dct" or METHODS[method].full_rank in (WHOLE, "project")
    ruled |= method == "frugal" and golden["keys"].get("subspace", "columns") not in ("random", "svd")
    return _projected(golden, number) and golden["keys"].get("proj_type") != "full" and not ruled


def same_bits_expected(golden: Golden) -> list[bool]:
    """For each weight, True where the bits are to be those of the file. Where torch steps it, by the same roots."""
    roots = square_root() == golden["written_with"]["square_root"]
    return [alike(golden) and (roots or by_kernel(golden, number)) for number in range(len(golden["weights"]))]


def _release(version: str) -> str:
    return version.partition("+")[0]


def fresh(golden: Golden) -> tuple[list[nn.Parameter], LowRankOptimizer]:
    """The weights at the moment of the save and an optimizer that has taken no step."""
    weights = [nn.Parameter(weight.clone()) for weight in golden["weights"]]
    kind: Any = METHODS[golden.get("method", "galore")]
    return weights, kind(weights, **golden["keys"])


def take(weights: list[nn.Parameter], optimizer: LowRankOptimizer, gradients: list[Tensor]) -> list[Tensor]:
    """Takes a step with each of `gradients`, [steps, *shape] for each weight. The weights after each step, likewise."""
    after: list[list[Tensor]] = [[] for _ in weights]
    for of_step in zip(*gradients, strict=True):
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        for seen, weight in zip(after, weights, strict=True):
            seen.append(weight.detach().clone())
    return [torch.stack(seen) for seen in after]


def replay(golden: Golden) -> list[Tensor]:
    """The weights after each step of an optimizer that took over the golden state."""
    weights, optimizer = fresh(golden)
    optimizer.load_state_dict(golden["optimizer"])
    return take(weights, optimizer, golden["gradients"])


def other_bits(golden: Golden, found: list[Tensor]) -> list[str]:
    """Which weights differ from the golden ones after which steps, among those that are to have the same bits."""
    good = [_bytes(ours) == _bytes(theirs) for ours, theirs in zip(found, golden["after"], strict=True)]
    expected = same_bits_expected(golden)
    return _named(found, [same if asked else torch.ones_like(same) for same, asked in zip(good, expected, strict=True)])


def out_of_bound(golden: Golden, found: list[Tensor]) -> list[str]:
    """Which weights are further from the golden ones than `bound` after which steps."""
    pairs = enumerate(zip(found, golden["after"], strict=True))
    within = [(ours.double() - theirs.double()).abs() <= bound(golden, number) for number, (ours, theirs) in pairs]
    return _named(found, within)


def bound(golden: Golden, number: int) -> Tensor:
    """How far weight `number` may be from the golden one after each step, [steps, 1, ...]: for two machines, each of
    which rounds in its own way, to first order.

    An entry of R is off by the rounding of its sum; after a search also by the turn of the basis, the error of a search
    times s_1 / min (s_i - s_i+1). Both are relative to the norm of a column of G. `spread` is the largest ratio of that
    norm to the root of an entry of v, so N = m / sqrt(v) is off by at most three times as much times `spread`: in m, in
    the root and in the quotient. They are means, in which what was read since the search weighs 1 - beta1^steps. Errors
    of stored codes add up, for a number next to where two codes meet may take either in every step. What N, or the
    basis that lifts it, is off by moves the weight by that share of what N moves it by. A weight is rounded once a
    step.
    """
    before, after, keys = golden["weights"][number], golden["after"][number].double(), golden["keys"]
    unit, half = tolerance.UNIT[before.dtype], before.dtype == torch.bfloat16
    steps, spread = torch.arange(1, len(after) + 1), golden["conditions"]["spread"]
    product, basis = _errors_of_reading(golden, number)
    since = (steps - _steps_to_a_search(golden, number)).clamp(min=0)
    read = 3 * spread * (product + basis * (1 - keys["betas"][0] ** since)) + basis * (since > 0)
    stored = keys.get("moment_dtype", "bfloat16" if half else "float32")
    coded = _CODE[stored] * steps * (spread if stored == "int8" else 1.0)
    moved = torch.diff(torch.cat([before.double()[None], after]), dim=0).abs().flatten(1).amax(dim=1)
    rounded = 4 * unit * after.abs().flatten(1).amax(dim=1)
    return ((2 * read + coded) * moved + rounded).cumsum(dim=0).reshape(-1, *[1] * before.ndim)


def _errors_of_reading(golden: Golden, number: int) -> tuple[float, float]:
    """Of an entry of R, relative to the norm of a column of G: by its sum, and by the basis."""
    last = golden["gradients"][number][-1]
    work = tolerance.factor_dtype(last.dtype)
    matrix = (last.flatten(1) if last.ndim > 1 else last[None]).to(work)
    product = tolerance.gamma(sum(matrix.shape), work)
    if not _projected(golden, number):
        return product, 0.0
    width = min(golden["keys"]["rank"] + 10, *matrix.shape)
    turned = golden["conditions"]["gap"] * tolerance.singular_values(matrix, width, 2) / tolerance.norm(matrix)
    return product, turned + (tolerance.UNIT[torch.bfloat16] if last.dtype == torch.bfloat16 else 0.0)


def _projected(golden: Golden, number: int) -> bool:
    shape = golden["weights"][number].shape
    return len(shape) > 1 and golden["keys"]["rank"] < min(shape[0], shape[1:].numel())


def _steps_to_a_search(golden: Golden, number: int) -> int:
    """Steps after the save with the basis that was saved."""
    state = golden["optimizer"]["state"][number]
    return int(-state["step"] % golden["keys"]["update_proj_gap"]) if "proj.rank" in state else 0


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor as bytes, those of an entry along a new last dimension: 0 is not -0 then."""
    return tensor.unsqueeze(-1).contiguous().view(torch.uint8)


def _named(found: list[Tensor], right: list[Any]) -> list[str]:
    names = []
    for number, (weight, good) in enumerate(zip(found, right, strict=True)):
        bad = (~good).flatten(1).any(dim=1).nonzero().flatten().tolist()
        names += [f"weight {number} {tuple(weight.shape[1:])} after step {step + 1}" for step in bad]
    return names


def main() -> None:
    torch.set_num_threads(1)
    check_level()
    report = {}
    for path in FILES:
        golden = load(path)
        found = replay(golden)
        report[path.name] = {
            "to the bit": sum(same_bits_expected(golden)),
            "other bits": other_bits(golden, found),
            "out of bound": out_of_bound(golden, found) if path in BOUNDED else [],
        }
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
