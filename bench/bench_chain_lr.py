"""Chains of thin products against plain torch compositions and autograd.

The gradient of an attention adapter is compared with autograd through naive attention and through torch's own
scaled_dot_product_attention; layers with autograd through the textbook expression; chains with torch.linalg.multi_dot;
the basis step of many layers with torch's QR and SVD of one layer after the other.

    python bench/bench_chain_lr.py [--threads 2] [--rounds 25] [--isa avx512] [--only attention]
    python bench/bench_chain_lr.py --errors docs/guides/chained-gradients.png   # error against size and degree instead
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowrank_core
import torch
from _harness import Bench, Row
from lowrank_core import _core
from lowrank_core.reference import chain_lr as reference
from lowrank_core.reference import rsvd_augment as reference_augment
from torch import Tensor

LENGTH, DEPTH, RANK, SCALE = 8192, 16, 8, 0.5
LARGEST = 0.5  # |score|
LONGER = (16384, 32768, 65536)  # where the chain alone is timed
TARGETS = {  # shares of the time of what they are compared with
    "exact / naive autograd": 0.5,
    "chained / exact": 0.33,
    **{f"chained, L={2 * n} / L={n}": 2.3 for n in (8192, 16384, 32768)},
}
Answers = dict[str, Callable[[], Any]]


def relative(found: Any, exact: Any) -> float:
    """Relative Frobenius error of several tensors together."""
    error = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(found, exact, strict=True))
    size = sum(float(y.double().square().sum()) for y in exact)
    return float((error / size) ** 0.5)


# ---- attention -----------------------------------------------------------------------------------------------------


def attention(length: int, depth: int, largest: float, seed: int = 0) -> dict[str, Tensor]:
    """A head whose largest |score|, after the mean key is taken off, is given."""
    number = torch.Generator().manual_seed(seed)
    normal = functools.partial(torch.randn, generator=number)
    t = {name: normal(length, depth) for name in ("queries", "keys", "values", "dout")}
    t |= {"a": normal(RANK, depth) / depth**0.5, "b": 0.1 * normal(depth, RANK), "weight": torch.eye(depth)}
    effective = t["queries"] @ (t["weight"] + SCALE * t["b"] @ t["a"])
    centered = t["keys"] - t["keys"].mean(0)
    t["queries"] *= largest / max(float((rows @ centered.mT).abs().max()) for rows in effective.split(1024))
    return t


def ours(t: dict[str, Tensor], **options: Any) -> Any:
    arrays = (t[n] for n in ("queries", "keys", "values", "dout", "a", "b"))
    return lowrank_core.attention_lora_grad(*arrays, weight=t["weight"], scale=SCALE, **options)[:2]


def by_autograd(t: dict[str, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
    a, b = t["a"].clone().requires_grad_(), t["b"].clone().requires_grad_()
    q = t["queries"] @ t["weight"] + SCALE * (t["queries"] @ b) @ a
    return torch.autograd.grad(attend(q, t["keys"], t["values"]), (a, b), t["dout"])


def naive(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    scores = q @ k.mT
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    heads = (x[None, None] for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal, scale=1.0)[0, 0]


def attention_cases(bench: Bench) -> dict[str, dict[str, Row]]:
    found = {}
    for causal in (False, True):
        length = LENGTH
        t = attention(length, DEPTH, LARGEST)
        rivals: Answers = {
            "autograd, naive": lambda t=t, c=causal: by_autograd(t, functools.partial(naive, causal=c)),
            "autograd, torch's own": lambda t=t, c=causal: by_autograd(t, functools.partial(fused, causal=c)),
            "exact": lambda t=t, c=causal: ours(t, causal=c),
            "chained, degree 2": lambda t=t, c=causal: ours(t, causal=c, method="chained"),
        }
        expected = reference.attention_lora_grad(
            *(t[n] for n in ("queries", "keys", "values", "dout", "a", "b")),
            weight=t["weight"],
            scale=SCALE,
            causal=causal,
        )
        name = "causal" if causal else "attention"
        found[name] = bench.compare(
            f"{name} L={length} d={DEPTH} r={RANK}",
            rivals,
            baseline="autograd, naive",
            error=lambda answer, expected=expected: relative(answer, expected),
            limit=dict.fromkeys(rivals, 1e-4) | {"chained, degree 2": 1e-2},
        )
    return found


def growth_cases(bench: Bench) -> dict[str, float]:
    """Times of the chained gradient from one length to twice that; too long for the others."""
    seconds = []
    for length in (LENGTH, *LONGER):
        t = attention(length, DEPTH, LARGEST)
        rows = bench.compare(
            f"chained L={length}",
            {"chained, degree 2": lambda t=t: ours(t, method="chained")},
            baseline="chained, degree 2",
            error={},
            limit=1.0,
        )
        seconds.append(rows["chained, degree 2"].median_s)
    lengths = (LENGTH, *LONGER[:-1])
    return {
        f"chained, L={2 * n} / L={n}": b / a for n, (a, b) in zip(lengths, itertools.pairwise(seconds), strict=True)
    }


# ---- layers, chains and basis steps --------------------------------------------------------------------------------


def plain_layer(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x @ w.mT + SCALE * ((x @ a.mT) @ b.mT)


def full_layer(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return reference.lora_linear(x, w, a, b, scale=SCALE).to(x.dtype)


def both_passes(
    function: Callable[..., Tensor], leaves: tuple[Tensor, Tensor, Tensor, Tensor], dy: Tensor
) -> tuple[Tensor, ...]:
    """y and the gradients of x, a and b."""
    x, w, a, b = (t.detach().requires_grad_(i != 1) for i, t in enumerate(leaves))
    y = function(x, w, a, b)
    return y.detach(), *torch.autograd.grad(y, (x, a, b), dy)


def layer_cases(bench: Bench) -> None:
    for tokens, size, dtype in ((512, 1024, torch.float32), (512, 1024, torch.bfloat16), (2048, 2048, torch.float32)):
        x, w, dy = (torch.randn(*s).to(dtype) for s in ((tokens, size), (size, size), (tokens, size)))
        leaves = (x, w, torch.randn(RANK, size).to(dtype), torch.randn(size, RANK).to(dtype))
        functions = {"torch": plain_layer, "lowrank_core": functools.partial(lowrank_core.lora_linear, scale=SCALE)}
        exact = both_passes(full_layer, leaves, dy)
        bench.compare(
            f"lora_linear {tokens}x{size} {str(dtype).removeprefix('torch.')}",
            {name: functools.partial(both_passes, function, leaves, dy) for name, function in functions.items()},
            baseline="torch",
            error=lambda answer, exact=exact: relative(answer, exact),
            limit=2e-2 if dtype == torch.bfloat16 else 1e-5,
        )


def chain_cases(bench: Bench) -> None:
    for dims in ((2048, 8, 2048, 8, 2048, 64), (16, 1024, 16, 1024, 16, 1024)):
        matrices = [torch.randn(m, n) for m, n in itertools.pairwise(dims)]
        exact = reference.chain_matmul(matrices)
        bench.compare(
            f"chain {'x'.join(map(str, dims))}",
            {
                "torch, left to right": lambda m=matrices: functools.reduce(torch.matmul, m),
                "torch.linalg.multi_dot": lambda m=matrices: torch.linalg.multi_dot(m),
                "lowrank_core": lambda m=matrices: lowrank_core.chain_matmul(m),
            },
            baseline="torch.linalg.multi_dot",
            error=lambda answer, exact=exact: relative([answer], [exact]),
            limit=1e-5,
        )


def torch_step(u: Tensor, s: Tensor, v: Tensor, gv: Tensor, gu: Tensor, lr: float, rank: int) -> tuple[Tensor, ...]:
    """One layer's basis step in plain torch."""
    r = u.shape[1]
    left, right = torch.linalg.qr(torch.cat([u, gv], 1)).Q, torch.linalg.qr(torch.cat([v, gu], 1)).Q
    left, right = torch.cat([u, left[:, r:]], 1), torch.cat([v, right[:, r:]], 1)
    block = torch.zeros(2 * r, 2 * r)
    block[:r, :r] = s - lr * u.mT @ gv
    block[:r, r:], block[r:, :r] = -lr * gu.mT @ right[:, r:], -lr * left[:, r:].mT @ gv
    p, values, qh = torch.linalg.svd(block)
    return left @ p[:, :rank], torch.diag(values[:rank]), right @ qh[:rank].mT


def augment_cases(bench: Bench) -> None:
    layers, (m, n), r, lr = 24, (1024, 768), 8, 0.1
    torch.manual_seed(0)
    u, v = ([torch.linalg.qr(torch.randn(size, r)).Q for _ in range(layers)] for size in (m, n))
    s = [torch.diag(torch.rand(r)) for _ in range(layers)]
    g = [torch.randn(m, n) / n for _ in range(layers)]
    gv, gu = [x @ b for x, b in zip(g, v, strict=True)], [x.mT @ b for x, b in zip(g, u, strict=True)]
    exact = [
        reference_augment.augment_truncate(*layer, lr=lr, tol=0.0, max_rank=r) for layer in zip(u, s, v, g, strict=True)
    ]

    def error(steps: Any) -> float:
        """Of the matrices; their factors are free in sign."""
        return relative([a @ b @ c.mT for a, b, c, *_ in steps], [(a * b) @ c.mT for a, b, c in exact])

    bench.compare(
        f"augment_truncate {layers} x {m}x{n} r={r}",
        {
            "torch, layer by layer": lambda: [torch_step(*layer, lr, r) for layer in zip(u, s, v, gv, gu, strict=True)],
            "lowrank_core": lambda: lowrank_core.augment_truncate(u, s, v, gv, gu, lr=lr, tol=0.0, max_rank=r),
        },
        baseline="torch, layer by layer",
        error=error,
        limit=1e-4,
    )


# ---- the guide's figure --------------------------------------------------------------------------------------------


def errors(path: Path) -> None:
    """Error of the chained gradient against the largest |score|, measured and estimated; a table and a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, degrees = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5), (2, 4, 6)
    figure, axes = pyplot.subplots(figsize=(6, 4))
    print(f"{'largest':>8}" + "".join(f"{f'degree {d}':>12}{'estimate':>12}" for d in degrees))
    lines: dict[int, list[tuple[float, float, float]]] = {d: [] for d in degrees}
    for size in sizes:
        t = {k: x.double() for k, x in attention(1024, 8, size).items()}
        names = ("queries", "keys", "values", "dout", "a", "b")
        exact = reference.attention_lora_grad(*(t[n] for n in names), weight=t["weight"], scale=SCALE)
        row = f"{size:8.2f}"
        for degree in degrees:
            estimate = _core.taylor_error(size, degree)
            error = float("nan")
            if estimate <= 0.5:
                error = relative(ours(t, method="chained", degree=degree), exact)
                lines[degree].append((size, error, estimate))
            row += f"{error:12.1e}{estimate:12.1e}"
        print(row)
    for (degree, points), color in zip(lines.items(), ("C0", "C1", "C2"), strict=True):
        x, error, estimate = zip(*points, strict=True)
        axes.loglog(x, error, "o-", color=color, label=f"degree {degree}")
        axes.loglog(x, estimate, ":", color=color, label=f"degree {degree}, estimate")
    axes.axhline(0.5, color="grey", linewidth=1)
    axes.set(xlabel="largest |score| after the mean key is taken off", ylabel="relative error of da and db")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case")
    parser.add_argument("--isa", choices=_core.isa_levels(), help="instruction-set level of lowrank_core")
    parser.add_argument("--only", choices=("attention", "layers"), help="a part of the cases; nothing is written")
    parser.add_argument("--errors", type=Path, help="instead, the error against score size and degree, as a picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    if options.isa:
        _core.set_isa(options.isa)
    if options.errors:
        return errors(options.errors)
    bench = Bench("bench_chain_lr", rounds=options.rounds, threads=options.threads, seconds=5.0)
    shares: dict[str, float] = {}
    if options.only != "layers":
        for name, rows in attention_cases(bench).items():
            exact, chained = rows["exact"].best_s, rows["chained, degree 2"].best_s
            prefix = "" if name == "attention" else f"{name} "
            shares[f"{prefix}exact / naive autograd"] = exact / rows["autograd, naive"].best_s
            shares[f"{prefix}chained / exact"] = chained / exact
        shares |= growth_cases(bench)
    if options.only != "attention":
        layer_cases(bench)
        chain_cases(bench)
        augment_cases(bench)
    for name, share in shares.items():
        target = TARGETS.get(name)
        verdict = "no target" if target is None else f"{'reaches' if share <= target else 'MISSES'} {target}"
        print(f"{name}: {share:.3f} of the time (best rounds), {verdict}")
    if options.only is None:
        bench.finish(isa=_core.isa(), shares=shares, targets=TARGETS)


if __name__ == "__main__":
    main()
