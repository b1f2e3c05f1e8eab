"""Calls of the operators on dense matrices: searches, factors, products, chains, attention."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import lowrank_core as lc
from source import FEW, SHAPES, Cases, Source, named, size, with_gradients
from torch import Tensor

# ---- rsvd ----------------------------------------------------------------------------------------------------------


def searches() -> Cases:
    for op in ("rsvd", "range_finder"):
        call = partial(_search, op)
        for shape in SHAPES:
            yield op, size(shape), partial(call, shape, {})
        for options in ({"niter": 1}, {"oversample": 0}, {"precision": "medium"}, {"seed": 9}):
            yield op, f"130x67 {named(options)}", partial(call, (130, 67), options)
            yield op, f"130x67 warm {named(options)}", partial(call, (130, 67), {**options, "warm": True})
        yield op, "130x67 niter=0", partial(call, (130, 67), {"niter": 0})
        yield op, "3x37x53", partial(call, (3, 37, 53), {})
        yield op, "transposed", lambda x, op=op: getattr(lc, op)(x.decaying(53, 37).mT, 5)
    yield "rsvd", "gradients", lambda x: _search_gradients(x.decaying(37, 53))
    yield "svd_lowrank", "37x53", lambda x: lc.svd_lowrank(x.decaying(37, 53), 5)
    for options in ({"energy": 0.9}, {"tol": 0.1}, {"energy": 0.99, "block": 5}, {"max_rank": 7, "tol": 0.0}):
        for shape in FEW:
            run = partial(lambda shape, options, x: lc.qb(x.decaying(*shape), **options), shape, options)
            yield "qb", f"{size(shape)} {named(options)}", run


def _search(op: str, shape: tuple[int, ...], options: dict[str, Any], x: Source) -> Any:
    a, rank = x.decaying(*shape[-2:]).expand(shape), min(*shape[-2:], 6)
    options = dict(options)
    if options.pop("warm", False):
        options["basis"] = x.basis(shape[-2], rank)
    return getattr(lc, op)(a, rank, **options)


def _search_gradients(a: Tensor) -> Any:
    return with_gradients(lambda a: tuple(lc.rsvd(a, 5)), [a], [a])


def factors() -> Cases:
    for shape in FEW:
        yield (
            "factored_svd",
            size(shape),
            partial(lambda s, x: lc.factored_svd(x.normal(s[0], 5), x.normal(5, s[1])), shape),
        )
        for method in ("auto", "cholqr2", "householder", "newton_schulz"):
            what = f"{size(shape)} {method}"
            run = partial(
                lambda s, method, x: lc.orthonormalize(x.normal(s[0], s[1] // 4), method=method), shape, method
            )
            yield "orthonormalize", what, run
    yield "orthonormalize", "dependent", lambda x: lc.orthonormalize(x.normal(40, 3).repeat(1, 2))
    yield "factored_svd", "rank", lambda x: lc.factored_svd(x.normal(40, 9), x.normal(9, 24), rank=4)
    for options in ({"tol": 0.0}, {"tol": 0.2}, {"tol": 0.0, "budget": 9, "weights": [1.0, 2.0]}, {"gs": True}):
        yield "augment_truncate", named(options), partial(_augment, options)


def _augment(options: dict[str, Any], x: Source) -> Any:
    shapes, r = ((40, 24), (37, 53)), 4
    lists = [
        [x.basis(m, r) for m, _ in shapes],
        [x.normal(r, r) for _ in shapes],
        [x.basis(n, r) for _, n in shapes],
        [x.normal(m, r) for m, _ in shapes],
        [x.normal(n, r) for _, n in shapes],
    ]
    extra = {"tol": 0.1, **options}
    if extra.pop("gs", False):
        extra["gs"] = [x.normal(r, r) for _ in shapes]
    return lc.augment_truncate(*lists, lr=0.1, max_rank=6, **extra)


def products() -> Cases:
    for m, n in (*SHAPES, (515, 260)):
        r = min(m, n, 17)
        for side, rows in (("left", m), ("right", n)):
            low = (r, n) if side == "left" else (m, r)
            down = partial(
                lambda m, n, p, side, x: lc.project(x.normal(m, n), x.normal(*p), side=side), m, n, (rows, r), side
            )
            up = partial(
                lambda s, p, side, x: lc.project_back(x.normal(*s), x.normal(*p), side=side), low, (rows, r), side
            )
            yield "project", f"{m}x{n} {side}", down
            yield "project_back", f"{m}x{n} {side}", up
    for op, shape in (("project", (37, 53)), ("project_back", (5, 53))):
        yield op, "gradients", partial(_project_gradients, op, shape)
    yield "project", "strided", lambda x: lc.project(x.normal(40, 48)[:, ::2].mT, x.normal(24, 5), side="left")
    yield "project", "batch", lambda x: lc.project(x.normal(3, 37, 53), x.normal(3, 37, 5), side="left")


def _project_gradients(op: str, shape: tuple[int, int], x: Source) -> Any:
    arrays = [x.normal(*shape), x.normal(37, 5)]
    return with_gradients(partial(getattr(lc, op), side="left"), arrays, arrays)


# ---- chain_lr ------------------------------------------------------------------------------------------------------


def chains() -> Cases:
    for sizes in ((40, 3, 24), (37, 53, 4, 61), (7, 130, 2, 67, 9), (1, 5, 1, 8)):
        yield "chain_matmul", size(sizes), partial(_chain, sizes)
    for rows, bias in (((8,), True), ((5, 13), False)):
        yield "lora_linear", f"{size(rows)} bias={bias}", partial(_linear, "lora_linear", rows, bias)
        yield "usv_linear", f"{size(rows)} bias={bias}", partial(_linear, "usv_linear", rows, bias)


def _chain(sizes: tuple[int, ...], x: Source) -> Any:
    matrices = [x.normal(m, n) for m, n in pairwise(sizes)]
    return with_gradients(lc.chain_matmul, [matrices], matrices)


def _linear(op: str, rows: tuple[int, ...], bias: bool, x: Source) -> Any:
    lead, w = x.normal(*rows, 37), x.normal(53, 37)
    parts = (
        [x.normal(4, 37), x.normal(53, 4)]
        if op == "lora_linear"
        else [x.normal(53, 4), x.normal(4, 4), x.normal(37, 4)]
    )
    options = {"scale": 0.5, "bias": x.normal(53) if bias else None}
    return with_gradients(partial(getattr(lc, op), **options), [lead, w, *parts], [lead, w, *parts])


def attention() -> Cases:
    for options in ({}, {"causal": True}, {"method": "chained"}, {"method": "auto", "degree": 4}, {"features": True}):
        for heads in ((), (2,)):
            yield "attention_lora_grad", f"{named(options)} {size(heads)}", partial(_attention, heads, options)
    yield "positive_features", "", lambda x: lc.positive_features(0.1 * x.normal(9, 6), 0.1 * x.normal(11, 6), count=32)


def _attention(heads: tuple[int, ...], options: dict[str, Any], x: Source) -> Any:
    length, others = (19, 19) if options.get("causal") else (19, 23)
    queries, keys = 0.2 * x.normal(*heads, length, 8), 0.2 * x.normal(*heads, others, 8)
    values, dout = x.normal(*heads, others, 5), x.normal(*heads, length, 5)
    lora = 0.3 * x.normal(3, 8), 0.3 * x.normal(8, 3)
    if options.get("features"):
        options = {**options, "features": (x.positive(*heads, length, 12), x.positive(*heads, others, 12))}
    return lc.attention_lora_grad(queries, keys, values, dout, *lora, weight=0.3 * x.normal(8, 8), scale=0.5, **options)
