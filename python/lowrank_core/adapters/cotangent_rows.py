"""Cotangents that are made one at a time, so that any number of rows of a Jacobian needs the memory of one.

Each is formed in float64, for some tokens at a time, and rounded once to the dtype that is asked for. `logits` are read
detached. Classes below 0 mark tokens that do not count: they are zero in every cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

BLOCK = 2**18  # float64 numbers that are held beside a cotangent


@dataclass(frozen=True)
class Cotangents:
    """As many as `count`, made anew by each iteration. One is valid until the next is asked for.

    Example:
      >>> import torch
      >>> from lowrank_core.adapters.cotangent_rows import identity_rows
      >>> [row.tolist() for row in identity_rows(torch.zeros(2))]
      [[1.0, 0.0], [0.0, 1.0]]
    """

    count: int
    make: Callable[[], Iterator[Tensor]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return self.make()

    def stacked(self, logits: Tensor) -> Tensor:
        """All at once: [count, *logits.shape] float64."""
        rows = logits.new_empty(self.count, *logits.shape, dtype=torch.float64)
        for target, row in zip(rows, self, strict=True):
            target.copy_(row)
        return rows


def joined(parts: Sequence[Cotangents]) -> Cotangents:
    """One after the other."""
    return Cotangents(sum(map(len, parts)), lambda: chain.from_iterable(parts))


def rows_of(cotangents: Tensor) -> Cotangents:
    """Those of a tensor [k, ...]."""
    return Cotangents(len(cotangents), lambda: iter(cotangents.detach().unbind()))


def identity_rows(outputs: Tensor, samples: range | None = None, value: float = 1.0) -> Cotangents:
    """One for each output, of `samples` alone: the plain Jacobian, times `value`."""
    whole = range(len(outputs) if outputs.ndim else 1) if samples is None else samples
    each = outputs.numel() // len(outputs) if outputs.ndim and len(outputs) else 1

    def make() -> Iterator[Tensor]:
        row = torch.zeros(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        flat = row.view(-1)
        for k in range(whole.start * each, whole.stop * each):
            flat[k] = value
            yield row
            flat[k] = 0.0

    return Cotangents(len(whole) * each, make)


def gaussian_rows(outputs: Tensor, targets: Tensor, samples: range, noise: float = 1.0) -> Cotangents:
    """Every output of `samples`, whitened, and (target - output) / noise last."""
    jacobian = identity_rows(outputs, samples, noise**-0.5)

    def make() -> Iterator[Tensor]:
        yield from jacobian
        some = slice(samples.start, samples.stop)
        row = torch.zeros(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        row[some] = (targets[some].to(outputs.dtype) - outputs[some].detach()) / noise
        yield row

    return Cotangents(len(jacobian) + 1, make)


def gaussian_mean_rows(outputs: Tensor, targets: Tensor, noise: float = 1.0) -> Cotangents:
    """The same output of all samples at once, over the root of their number, and the error last."""
    everyone, each = range(len(outputs)), outputs[0].numel()

    def make() -> Iterator[Tensor]:
        row = torch.zeros(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        flat, share = row.view(len(outputs), -1), row.new_ones(()) / (noise * len(outputs)) ** 0.5
        for k in range(each):
            flat[:, k] = share
            yield row
            flat[:, k] = 0.0
        *_, error = gaussian_rows(outputs, targets, everyone, noise)
        yield error

    return Cotangents(each + 1, make)


def softmax_rows(logits: Tensor, target: Tensor, dtype: torch.dtype, *, epsilon: float = 0.0) -> Cotangents:
    """A block of c for each token that counts, Cᵀ of its probabilities (`root_rows`), and y - ŷ last.

    Above 0, `epsilon` is added to the noise (`damped`).
    """
    flat, c = _flat(logits), logits.shape[-1]

    def block(i: int) -> Iterator[Tensor]:
        y = torch.softmax(flat[i].double(), -1)
        if epsilon > 0.0:
            yield damped(y, y, epsilon)[0]
        else:
            for begin in range(0, c, _at_once(c)):
                yield root_rows(y.sqrt(), begin, min(c, begin + _at_once(c)))

    def last(whole: Tensor) -> None:
        _put_scores(whole, flat, target, _counted(target), epsilon)

    return _placed(logits, target, dtype, c, block, last)


def softmax_mean_rows(logits: Tensor, target: Tensor, dtype: torch.dtype, *, epsilon: float = 0.0) -> Cotangents:
    """The same row of all blocks of `softmax_rows` at once, over the root of their number; the last one as there."""
    flat, c, counted = _flat(logits), logits.shape[-1], _counted(target)

    def make() -> Iterator[Tensor]:
        whole = torch.zeros(flat.shape, dtype=dtype, device=flat.device)
        for k in range(c):
            for some in _some(counted, c * c if epsilon > 0.0 else c):
                y = torch.softmax(flat[some].double(), -1)
                rows = damped(y, y, epsilon)[0][:, k] if epsilon > 0.0 else root_rows(y.sqrt(), k, k + 1).squeeze(-2)
                whole[some] = (rows / len(counted) ** 0.5).to(dtype)
            yield whole.view(logits.shape)
        _put_scores(whole, flat, target, counted, epsilon)
        yield whole.view(logits.shape)

    return Cotangents(c + 1, make)


def lumped_rows(logits: Tensor, target: Tensor, dtype: torch.dtype, *, keep: int, epsilon: float = 0.0) -> Cotangents:
    """A block of min(keep, c) + 2 for each token that counts (`_lumped`), and y - ŷ last.

    Above 0, `epsilon` is added to the noise of the lumped probabilities (`damped`).
    """
    flat, classes, most = _flat(logits), target.reshape(-1), min(keep, logits.shape[-1])

    def block(i: int) -> Iterator[Tensor]:
        sums, parts, _ = _lumped(torch.softmax(flat[i].double(), -1), int(classes[i]), most)
        yield (damped(sums, sums, epsilon)[0] if epsilon > 0.0 else root_rows(sums.sqrt(), 0, len(sums))) @ parts

    def last(whole: Tensor) -> None:
        counted = _counted(target)
        if not epsilon > 0.0:
            _put_scores(whole, flat, target, counted, 0.0)
            return
        for i in counted.tolist():
            sums, parts, place = _lumped(torch.softmax(flat[i].double(), -1), int(classes[i]), most)
            error = 0.0 - sums
            error[place] += 1.0
            whole[i] = (damped(sums, error, epsilon)[1] @ parts).to(dtype)

    return _placed(logits, target, dtype, most + 2, block, last)


def drawn_rows(logits: Tensor, target: Tensor, dtype: torch.dtype, *, samples: int, seed: int) -> Cotangents:
    """(ỹ - ŷ) / √samples with drawn labels ỹ, `samples` times, and y - ŷ last."""
    flat, counted = _flat(logits), _counted(target)

    def make() -> Iterator[Tensor]:
        whole = torch.zeros(flat.shape, dtype=dtype, device=flat.device)
        generator = torch.Generator(device=flat.device).manual_seed(seed)
        labels, hits = [], []
        for some in _some(counted, flat.shape[-1]):
            y = torch.softmax(flat[some].double(), -1)
            labels.append(torch.multinomial(y, samples, replacement=True, generator=generator))
            hits.append(((1.0 - y.gather(-1, labels[-1])) / samples**0.5).to(dtype))
            whole[some] = ((0.0 - y) / samples**0.5).to(dtype)
        for label, hit in zip(torch.cat(labels).unbind(-1), torch.cat(hits).unbind(-1), strict=True):
            missed = whole[counted, label]
            whole[counted, label] = hit
            yield whole.view(logits.shape)
            whole[counted, label] = missed
        _put_scores(whole, flat, target, counted, 0.0)
        yield whole.view(logits.shape)

    return Cotangents(samples + 1, make)


def block_rows(outputs: Tensor, sample: int, block: Tensor) -> Cotangents:
    """The rows of `block` [k, c] at one of the samples `outputs` [b, c]."""

    def make() -> Iterator[Tensor]:
        row = torch.zeros(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        for part in block.to(outputs.dtype):
            row[sample] = part
            yield row

    return Cotangents(len(block), make)


def root_rows(root: Tensor, begin: int, end: int) -> Tensor:
    """Rows `begin` to `end` of Cᵀ = (I - σσᵀ) diag(σ) for σ = √ŷ: [..., end - begin, c] for `root` [..., c].

    C Cᵀ = diag(ŷ) - ŷŷᵀ: exact, without an inverse, for ŷ down to 0.
    """
    eye = root.new_zeros(end - begin, root.shape[-1])
    eye.diagonal(begin).fill_(1.0)
    return root.unsqueeze(-2) * (eye - root[..., begin:end].unsqueeze(-1) * root.unsqueeze(-2))


def damped(y: Tensor, error: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Of probabilities y and errors [..., c] with noise R = Λ + epsilon I = L Lᵀ, Λ = diag(y) - yyᵀ, and Jacobian Λ J:
    L⁻¹ Λ [..., c, c], whose product with J is M, and Λ R⁻¹ error [..., c], whose product with J is the score."""
    fisher = torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2)
    root = torch.linalg.cholesky(fisher + epsilon * torch.eye(y.shape[-1], dtype=y.dtype, device=y.device))
    mixed = torch.linalg.solve_triangular(root, fisher, upper=False)
    whitened = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False)
    return mixed, (mixed.mT @ whitened).squeeze(-1)


def counted_blocks(flat: Tensor, target: Tensor) -> Iterator[Tensor]:
    """The numbers of the tokens that count, some at a time."""
    yield from _some(_counted(target), flat.shape[-1])


def _placed(
    logits: Tensor,
    target: Tensor,
    dtype: torch.dtype,
    each: int,
    block: Callable[[int], Iterator[Tensor]],
    last: Callable[[Tensor], None],
) -> Cotangents:
    """`each` rows for a token, which `block` makes some at a time and which touch it alone; then what `last` puts."""
    flat, counted = _flat(logits), _counted(target)

    def make() -> Iterator[Tensor]:
        whole = torch.zeros(flat.shape, dtype=dtype, device=flat.device)
        for i in counted.tolist():
            for rows in block(i):
                for row in rows.to(dtype):
                    whole[i] = row
                    yield whole.view(logits.shape)
            whole[i] = 0.0
        last(whole)
        yield whole.view(logits.shape)

    return Cotangents(each * len(counted) + 1, make)


def _flat(logits: Tensor) -> Tensor:
    return logits.detach().reshape(-1, logits.shape[-1])


def _counted(target: Tensor) -> Tensor:
    return (target.reshape(-1) >= 0).nonzero().squeeze(-1)


def _some(counted: Tensor, c: int) -> Iterator[Tensor]:
    return iter(torch.split(counted, _at_once(c)))


def _at_once(c: int) -> int:
    return max(1, BLOCK // max(1, c))


def _put_scores(whole: Tensor, flat: Tensor, target: Tensor, counted: Tensor, epsilon: float) -> None:
    """y - ŷ of all tokens that count; where the noise is damped, what it leaves of that."""
    classes, c = target.reshape(-1), flat.shape[-1]
    for some in _some(counted, c * c if epsilon > 0.0 else c):
        y = torch.softmax(flat[some].double(), -1)
        errors = 0.0 - y
        errors[torch.arange(len(some), device=some.device), classes[some]] += 1.0
        whole[some] = (damped(y, errors, epsilon)[1] if epsilon > 0.0 else errors).to(whole.dtype)


def _lumped(y: Tensor, target: int, keep: int) -> tuple[Tensor, Tensor, int]:
    """Lumped probabilities [keep + 2], the map [keep + 2, c] from logits to lumped logits, and the target's place."""
    kept = y.topk(keep).indices.tolist()
    kept += [] if target in kept else [target]
    rest = torch.ones_like(y, dtype=torch.bool)
    rest[kept] = False
    mass = y[rest].sum()
    parts = y.new_zeros(keep + 2, y.numel())
    parts[range(len(kept)), kept] = 1.0
    sums = y.new_zeros(keep + 2)
    sums[: len(kept)] = y[kept]
    if mass > 0:
        parts[-1] = torch.where(rest, y / mass, 0.0)  # of the logarithm of the sum of exponentials
        sums[-1] = mass
    return sums, parts, kept.index(target)
