"""Mutations planted by hand, which all tests passed once. Their tests must go on catching them.

Every default of every method's constructor is one of them, too: `defaults` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mutation.mutant import Mutant, between
from mutation.python_sites import sites

_OPTIM, _ADAPTERS = "python/lowrank_core/optim", "python/lowrank_core/adapters"


class Planted(NamedTuple):
    """A fault, and the text that makes it in place of another one, which is in the file once."""

    fault: str
    path: str
    old: str
    new: str


PLANTED = (
    Planted(
        "no kernel for Fira", f"{_OPTIM}/fused.py", "(Drop, ScaledRest, ScaledGradient),", "(Drop, ScaledGradient),"
    ),
    Planted("no kernel for APOLLO", f"{_OPTIM}/fused.py", "(Drop, ScaledRest, ScaledGradient),", "(Drop, ScaledRest),"),
    Planted(
        "no kernel for exact SVDs",
        f"{_OPTIM}/fused.py",
        "(RandomizedSVD, ExactSVD, Gaussian)",
        "(RandomizedSVD, Gaussian)",
    ),
    Planted(
        "no kernel for bfloat16 moments",
        f"{_OPTIM}/fused.py",
        "(Float32, StochasticBFloat16, Blocks8)",
        "(Float32, Blocks8)",
    ),
    Planted(
        "no kernel for 8-bit moments",
        f"{_OPTIM}/fused.py",
        "(Float32, StochasticBFloat16, Blocks8)",
        "(Float32, StochasticBFloat16)",
    ),
    Planted(
        "never warm-started",
        f"{_OPTIM}/refresh.py",
        "held = bucket.parts.projector.held(slot, state) if refreshes else None",
        "held = None",
    ),
    Planted(
        "a warm search takes niter",
        f"{_OPTIM}/parts/projectors/orthonormal.py",
        "return self.warm_niter if warm else self.niter",
        "return self.niter",
    ),
    Planted(
        "the same sketch at every refresh",
        f"{_OPTIM}/slots.py",
        "mix_seed(self.seed, self.index, refresh)",
        "mix_seed(self.seed, self.index, 0)",
    ),
    Planted(
        "the same rounding words for every weight",
        f"{_OPTIM}/slots.py",
        "Draw(mix_seed(self.seed, self.index), step)",
        "Draw(mix_seed(self.seed, 0), step)",
    ),
    Planted(
        "rounding words that no seed changes",
        f"{_OPTIM}/slots.py",
        "Draw(mix_seed(self.seed, self.index), step)",
        "Draw(mix_seed(0, self.index), step)",
    ),
    Planted(
        "bounds of step counts outlive a load",
        f"{_OPTIM}/base.py",
        "self._bounds, self._made, self._asked = {}, {}, self._layout_keys()",
        "self._made, self._asked = {}, self._layout_keys()",
    ),
    Planted("captured above 1", f"{_OPTIM}/refresh.py", ".square().clamp(max=1)", ".square()"),
    Planted(
        "a fused draft ignores torch's precision",
        f"{_OPTIM}/fused.py",
        'maximize=bucket.maximize, precision=resolve_precision("step", None),',
        'maximize=bucket.maximize, precision="highest",',
    ),
    Planted(
        "a fused step ignores torch's precision",
        f"{_OPTIM}/fused.py",
        'precision=resolve_precision("step", None), **options',
        'precision="highest", **options',
    ),
    Planted(
        "project ignores torch's precision",
        "python/lowrank_core/ops/rsvd/projection.py",
        "precision=resolve_precision(op, None)",
        'precision="highest"',
    ),
    Planted(
        "one fused bfloat16 step of five left out",
        f"{_OPTIM}/fused.py",
        "        step_list(\n",
        "        if params[0].dtype == torch.bfloat16 and steps[0] % 5 == 0:\n            return\n        step_list(\n",
    ),
    Planted("deflate of another size", f"{_ADAPTERS}/kalman.py", "torch.trace(a + r) / m**2", "torch.trace(a + r) / m"),
    Planted("another fading rate", f"{_ADAPTERS}/kalman.py", "FADING_RATE = 0.9987", "FADING_RATE = 0.9978"),
    Planted("Monte-Carlo rows of another scale", f"{_ADAPTERS}/cotangents.py", " / samples**0.5", " / samples"),
    Planted("the lumped rest needs more mass", f"{_ADAPTERS}/cotangents.py", "if mass > 0:", "if mass > 0.01:"),
    Planted(
        "the first array named as not finite",
        "python/lowrank_core/ops/arrays.py",
        "bad = next((name for name, a in given.items() if not _is_finite(a)), None)",
        "bad = next(iter(given))",
    ),
    Planted(
        "a gate restores all but the parameter",
        f"{_OPTIM}/step.py",
        "only_if(gate, [slot.weight, *",
        "only_if(gate, [*",
    ),
    Planted(
        "a 2-norm of gradients overflows", f"{_OPTIM}/devices.py", "vector_norm(grad, math.inf)", "vector_norm(grad)"
    ),
    Planted(
        "a 2-norm of a signal overflows", f"{_OPTIM}/refresh.py", "vector_norm(matrix, inf)", "vector_norm(matrix)"
    ),
    Planted(
        "clipping of scaled gradients",
        "python/lowrank_core/cli/loop.py",
        "        self._scaler.unscale_(self.optimizer)\n",
        "",
    ),
    Planted("no floor of the cosine", "python/lowrank_core/cli/loop.py", "min_ratio + (1 - min_ratio) *", "1.0 *"),
    Planted(
        "betas not passed on",
        "python/lowrank_core/cli/optimizers.py",
        '{"betas": tuned["betas"], "eps": config.eps}',
        '{"eps": config.eps}',
    ),
    Planted(
        "seed not passed on",
        "python/lowrank_core/cli/optimizers.py",
        "groups, seed=config.seed, **own",
        "groups, **own",
    ),
    Planted(
        "indices taken as they lie in memory",
        "python/lowrank_core/ops/dct_select/back.py",
        "out, coeffs, contiguous(indices), arrays",
        "out, coeffs, indices, arrays",
    ),
)


def planted(sources: dict[str, str]) -> Iterator[tuple[str, Mutant]]:
    """Fault and mutant.

    Raises:
      RuntimeError: the text of a fault is not in its file once; it has to be planted anew.
    """
    for fault, path, old, new in PLANTED:
        source = sources[path]
        if source.count(old) != 1:
            raise RuntimeError(
                f"mutate: `{old}` must be in {path} once, to plant: {fault}; mend tools/mutation/planted.py"
            )
        yield fault, between(path, "planted", source, source.replace(old, new))


def defaults(sources: dict[str, str]) -> Iterator[tuple[str, Mutant]]:
    """The same for another default of each parameter of each method."""
    for path in sorted(path for path in sources if path.startswith(f"{_OPTIM}/methods/")):
        for site in sites(path, sources[path]):
            mutated = site.mutated() if site.kind == "default" else None
            if mutated is not None:
                mutant = between(path, "planted", sources[path], mutated)
                yield f"another default: {mutant.change(sources[path])[1].rstrip(',')}", mutant
