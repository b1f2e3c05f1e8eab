"""Packed INT4 projection against torch, a composition of plain torch, and q_galore_torch where it is installed.

Quantization is compared with `clone()`, which moves the same array; products with torch's dense float32 product at
"highest" of the decoded basis, which decodes nothing. The composition gives the same codes.
q_galore_torch keeps one code a byte; only its projector is loaded, so `pip install --no-deps q-galore-torch` is enough.

    python bench/bench_int4_project.py [--threads 2] [--rounds 25] [--isa avx512]
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowrank_core
import torch
from _harness import Bench, Row
from lowrank_core import _core
from torch import Tensor

SIZE, RANK, GROUP = 4096, 128, 128
USABLE = 0.12  # relative error of 4-bit codes of Gaussian data in groups of 128: 0.100 affine, 0.117 symmetric
TARGETS = {"quantize_int4": 0.35, "int4_project": 1.0, "bytes": 0.54}  # shares of the baseline's time; bytes an element

Answers = dict[str, Callable[[], Any]]


def relative(found: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.double() - exact.double())
    return float(difference / torch.linalg.vector_norm(exact.double()))


# ---- the rivals ----------------------------------------------------------------------------------------------------


def _bfloat16(x: Tensor, towards: float) -> Tensor:
    """Rounded to bfloat16 towards plus or minus infinity."""
    near = x.bfloat16()
    beyond = near.nextafter(torch.full_like(near, towards))
    return torch.where(near.float() < x if towards > 0 else near.float() > x, beyond, near)


def torch_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `quantize_int4` does, in plain torch: packed codes, scales, offsets."""
    groups = x.view(-1, GROUP)
    low, high = groups.aminmax(dim=1, keepdim=True)
    offset = _bfloat16(low, -torch.inf)
    scale = _bfloat16((high - offset.float()) / 15, torch.inf)
    codes = ((groups - offset.float()) / scale.float() + 0.5).floor_().clamp_(0, 15).to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale, offset


def torch_dequantize(packed: Tensor, scale: Tensor, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).view(-1, GROUP)
    return (codes * scale.float() + offset.float()).view(shape)


def q_galore_projector() -> Any:
    """A projector of q_galore_torch with 4-bit codes, or None; the package itself would import bitsandbytes."""
    package = importlib.util.find_spec("q_galore_torch")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "q_galore_projector.py"
    spec = importlib.util.spec_from_file_location("q_galore_projector", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GaLoreProjector(RANK, quant=True, group_size=GROUP, n_bit=4)


# ---- the cases -----------------------------------------------------------------------------------------------------


def quantization(bench: Bench, x: Tensor, galore: Any) -> dict[str, Row]:
    def error(answer: Any) -> float:
        if isinstance(answer, Tensor):
            return relative(answer, x)
        if isinstance(answer, lowrank_core.Int4Matrix):
            return relative(lowrank_core.dequantize_int4(answer), x)
        if len(answer) == 3:
            return relative(torch_dequantize(*answer, tuple(x.shape)), x)
        codes, scales, zeros, shape = answer
        return relative((scales * (codes - zeros)).view(shape), x)

    rivals: Answers = {
        "clone": x.clone,
        "torch composition": lambda: torch_quantize(x),
        "lowrank_core": lambda: lowrank_core.quantize_int4(x, group_size=GROUP),
        "lowrank_core stochastic": lambda: lowrank_core.quantize_int4(x, group_size=GROUP, rounding="stochastic"),
        "lowrank_core nf4": lambda: lowrank_core.quantize_int4(x, group_size=GROUP, scheme="nf4"),
    }
    if galore is not None:
        rivals["q_galore_torch"] = lambda: galore._quantize(x, q_group_size=GROUP, n_bit=4)
    limits = dict.fromkeys(rivals, USABLE) | {"lowrank_core stochastic": 2**0.5 * USABLE}  # twice the variance
    nbytes = x.nbytes + x.numel() / 2 + 4 * x.numel() / GROUP
    return bench.compare(f"quantize {SIZE}²", rivals, baseline="clone", error=error, limit=limits, nbytes=nbytes)


def projection(bench: Bench, p: Tensor, g: Tensor, galore: Any) -> dict[str, dict[str, Row]]:
    """Pᵀ g, and P times the result."""
    q = lowrank_core.quantize_int4(p, dim=0, group_size=GROUP)
    read, parts = lowrank_core.dequantize_int4(q), torch_quantize(p.T.contiguous())
    low = lowrank_core.int4_project(q, g)

    def decoded() -> Tensor:
        return torch_dequantize(*parts, (RANK, SIZE))

    there: Answers = {
        "torch dense": lambda: read.T @ g,
        "torch decode, product": lambda: decoded() @ g,
        "lowrank_core": lambda: lowrank_core.int4_project(q, g),
    }
    back: Answers = {
        "torch dense": lambda: read @ low,
        "torch decode, product": lambda: decoded().T @ low,
        "lowrank_core": lambda: lowrank_core.int4_project_back(q, low),
    }
    if galore is not None:
        fields = galore._quantize(p.T.contiguous(), q_group_size=GROUP, n_bit=4)
        galore.ortho_matrix, galore.ortho_matrix_scales, galore.ortho_matrix_zeros, galore.ortho_matrix_shape = fields
        there["q_galore_torch"] = lambda: galore.project(g.T, 1).T
        back["q_galore_torch"] = lambda: galore.project_back(low.T).T
    found = {}
    for name, rivals in (("int4_project", there), ("int4_project_back", back)):
        exact = rivals["torch dense"]()
        # q_galore_torch has codes of its own: as far from the basis, hence twice that from ours.
        found[name] = bench.compare(
            f"{name} {SIZE}x{RANK}x{SIZE}",
            rivals,
            baseline="torch dense",
            error=lambda answer, exact=exact: relative(answer, exact),
            limit=dict.fromkeys(rivals, SIZE * 2.0**-24) | {"q_galore_torch": 2 * USABLE},
            flops=2.0 * RANK * SIZE * SIZE,
        )
    return found


def bytes_an_element(x: Tensor) -> float:
    q = lowrank_core.quantize_int4(x, group_size=GROUP)
    return sum(part.nbytes for part in (q.packed, q.scales, q.offsets)) / x.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    if options.isa:
        _core.set_isa(options.isa)

    bench = Bench("bench_int4_project", rounds=options.rounds, threads=options.threads)
    galore = q_galore_projector()
    x, p = torch.randn(SIZE, SIZE), torch.linalg.qr(torch.randn(SIZE, RANK)).Q
    shares = {"quantize_int4": 1 / quantization(bench, x, galore)["lowrank_core"].speed_vs_baseline}
    for name, rows in projection(bench, p, x, galore).items():
        shares[name] = 1 / rows["lowrank_core"].speed_vs_baseline
    shares["bytes"] = bytes_an_element(x)
    for name, share in shares.items():
        target = TARGETS.get(name)
        verdict = "no target" if target is None else f"{'reaches' if share <= target else 'MISSES'} {target}"
        print(f"{name}: {share:.3f}{'' if name == 'bytes' else ' of the time of the baseline'}, {verdict}")
    bench.finish(isa=_core.isa(), shares=shares, targets=TARGETS)


if __name__ == "__main__":
    main()
