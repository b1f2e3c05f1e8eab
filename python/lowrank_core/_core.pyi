"""
Compiled kernels of lowrank_core. Arrays in, arrays out; the public functions are in lowrank_core.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy.typing

__all__: list[str] = [
    "ArrayError",
    "Scratch",
    "SharingError",
    "adamw_step",
    "adapter_gradient",
    "adapter_linear",
    "are_ordinary",
    "array_refusal",
    "attention_chained",
    "attention_exact",
    "attention_operands",
    "attention_sampled_error",
    "attention_score_bound",
    "augment_truncate",
    "build_info",
    "chain_matmul",
    "convert",
    "count_step",
    "dct_project_back",
    "dct_project_back_list",
    "dct_select",
    "dct_select_feedback",
    "dct_select_feedback_list",
    "dct_transform",
    "decode_moment",
    "dequantize_int4",
    "dequantize_int4_list",
    "encode_moment",
    "factored_directions",
    "factored_svd",
    "fast_bfloat16",
    "follow_step",
    "gaussian",
    "gemm",
    "int4_project",
    "isa",
    "isa_levels",
    "kalman_diag_gain",
    "kalman_diag_step",
    "kalman_diag_step_",
    "lines_step",
    "mkl_roots",
    "newton_schulz",
    "nonfinite",
    "norms",
    "num_threads",
    "orthonormalize",
    "overlaps_itself",
    "philox_bits",
    "plan_chain",
    "qb",
    "quantize_int4",
    "range_finder",
    "rotate_moments",
    "round_stochastic",
    "rsvd",
    "scaled_gradients",
    "selected_step",
    "set_isa",
    "set_num_threads",
    "share_memory",
    "sketch",
    "sketched_step",
    "subspace_project",
    "subspace_update",
    "taylor_error",
    "taylor_score",
]

class ArrayError(ValueError):
    pass

class SharingError(ArrayError):
    pass

class Scratch:
    """
    Uninitialised bytes, which the core uses again.
    """
    def __init__(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> None: ...

def adamw_step(
    params: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    corrections: collections.abc.Sequence[
        tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
    ],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    betas: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex],
    eps: typing.SupportsFloat | typing.SupportsIndex,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    stochastic: bool,
    fused: bool,
    roots: str,
) -> None:
    """
    AdamW with a list of weights that are not projected, rounded as torch's loop rounds.
    """

def adapter_gradient(
    first_grad: numpy.typing.ArrayLike,
    last_grad: numpy.typing.ArrayLike,
    dy: numpy.typing.ArrayLike,
    x: numpy.typing.ArrayLike,
    first: numpy.typing.ArrayLike,
    last: numpy.typing.ArrayLike,
    *,
    middle_grad: numpy.typing.ArrayLike | None = None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
) -> None:
    """
    With G = dyᵀ x: scale Gᵀ last, scale G first and scale lastᵀ G first.
    """

def adapter_linear(
    y: numpy.typing.ArrayLike,
    x: numpy.typing.ArrayLike,
    w: numpy.typing.ArrayLike | None,
    first: numpy.typing.ArrayLike,
    last: numpy.typing.ArrayLike,
    *,
    middle: numpy.typing.ArrayLike | None = None,
    bias: numpy.typing.ArrayLike | None = None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
) -> None:
    """
    y <- x wᵀ + scale ((x first) middleᵀ) lastᵀ + bias, without what is None.
    """

def are_ordinary(tensors: list[typing.Any]) -> bool:
    """
    Whether all are seen at once to be torch tensors that a step can take. False says nothing.
    """

def array_refusal(array: typing.Any, *, on_host: bool = True) -> str | None:
    """
    Why a kernel, of the host alone or of any device, cannot read `array`, "must ..., got ...; ...", else None.
    """

def attention_chained(
    da: numpy.typing.ArrayLike,
    db: numpy.typing.ArrayLike,
    arrays: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    mask: numpy.typing.ArrayLike | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool,
    degree: typing.SupportsInt | typing.SupportsIndex,
    left: numpy.typing.ArrayLike | None,
    right: numpy.typing.ArrayLike | None,
) -> None:
    """
    The same by features: monomials up to a degree, or the ones given.
    """

def attention_exact(
    da: numpy.typing.ArrayLike,
    db: numpy.typing.ArrayLike,
    arrays: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    mask: numpy.typing.ArrayLike | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool,
) -> None:
    """
    Gradients of an attention adapter by tiles of scores.
    """

def attention_operands(
    queries: numpy.typing.ArrayLike,
    keys: numpy.typing.ArrayLike,
    arrays: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    mask: numpy.typing.ArrayLike | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
) -> None:
    """
    What features are taken of: effective queries, and keys less their mean.
    """

def attention_sampled_error(
    arrays: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    mask: numpy.typing.ArrayLike | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool,
    left: numpy.typing.ArrayLike | None,
    right: numpy.typing.ArrayLike | None,
) -> float:
    """
    Relative error of a few rows by given features.
    """

def attention_score_bound(
    arrays: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    mask: numpy.typing.ArrayLike | None,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    causal: bool,
    enough: typing.SupportsFloat | typing.SupportsIndex,
) -> float:
    """
    A bound of all |scores| that is at most `enough`; where a score is larger than that, one that is.
    """

def augment_truncate(
    out: collections.abc.Sequence[collections.abc.Sequence[numpy.typing.ArrayLike]],
    layers: collections.abc.Sequence[collections.abc.Sequence[numpy.typing.ArrayLike]],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    tol: typing.SupportsFloat | typing.SupportsIndex,
    min_rank: typing.SupportsInt | typing.SupportsIndex,
    max_rank: typing.SupportsInt | typing.SupportsIndex,
    budget: typing.SupportsInt | typing.SupportsIndex | None,
    weights: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
) -> list[tuple[int, float]]:
    """
    One basis step of each layer into out; returns (rank, share lost) for each.
    """

def build_info() -> dict[str, typing.Any]:
    """
    Facts of this build: version, compiler, CUDA toolkit or None.
    """

def chain_matmul(out: numpy.typing.ArrayLike, matrices: collections.abc.Sequence[numpy.typing.ArrayLike]) -> None:
    """
    The product of a list of matrices, or batches of them, into out.
    """

def convert(to: numpy.typing.ArrayLike, from_: numpy.typing.ArrayLike) -> None:
    """
    to <- from_, a matrix of another floating dtype, rounded once.
    """

def count_step(counts: collections.abc.Sequence[numpy.typing.ArrayLike]) -> None:
    """
    Adds one to each count of steps, float32 of one element.
    """

def dct_project_back(
    out: numpy.typing.ArrayLike,
    coeffs: numpy.typing.ArrayLike,
    indices: numpy.typing.ArrayLike,
    *,
    basis: str,
    atoms: numpy.typing.ArrayLike | None = None,
    side: str,
) -> None:
    """
    The matrix that has these coordinates into out.
    """

def dct_project_back_list(
    out: collections.abc.Sequence[numpy.typing.ArrayLike],
    coeffs: collections.abc.Sequence[numpy.typing.ArrayLike],
    indices: collections.abc.Sequence[numpy.typing.ArrayLike],
    left: collections.abc.Sequence[bool],
    *,
    basis: str,
) -> None:
    """
    The same for a list of matrices.
    """

def dct_select(
    indices: numpy.typing.ArrayLike,
    coeffs: numpy.typing.ArrayLike,
    captured: numpy.typing.ArrayLike,
    g: numpy.typing.ArrayLike,
    *,
    basis: str,
    atoms: numpy.typing.ArrayLike | None = None,
    side: str,
    norm_ord: typing.SupportsInt | typing.SupportsIndex = 2,
) -> None:
    """
    The best atoms for `g`: their numbers, coordinates, and the share of the squares that they capture.
    """

def dct_select_feedback(
    indices: numpy.typing.ArrayLike,
    coeffs: numpy.typing.ArrayLike,
    captured: numpy.typing.ArrayLike,
    residual: numpy.typing.ArrayLike,
    g: numpy.typing.ArrayLike,
    *,
    keep: typing.SupportsFloat | typing.SupportsIndex,
    basis: str,
    atoms: numpy.typing.ArrayLike | None = None,
    side: str,
    norm_ord: typing.SupportsInt | typing.SupportsIndex = 2,
) -> None:
    """
    The same for coordinates of `g` plus `residual`, which becomes what was not chosen.
    """

def dct_select_feedback_list(
    indices: collections.abc.Sequence[numpy.typing.ArrayLike],
    coeffs: collections.abc.Sequence[numpy.typing.ArrayLike],
    captured: collections.abc.Sequence[numpy.typing.ArrayLike],
    residuals: collections.abc.Sequence[numpy.typing.ArrayLike],
    g: collections.abc.Sequence[numpy.typing.ArrayLike],
    left: collections.abc.Sequence[bool],
    *,
    keep: typing.SupportsFloat | typing.SupportsIndex,
    basis: str,
    norm_ord: typing.SupportsInt | typing.SupportsIndex,
    finite: bool,
) -> None:
    """
    The same for a list of matrices; `finite`: the caller knows that all of `g` are.
    """

def dct_transform(
    out: numpy.typing.ArrayLike, x: numpy.typing.ArrayLike, *, basis: str = "dct2", method: str = "auto"
) -> None:
    """
    Coordinates of `x` along its last dimension into out; dct3 is the inverse of dct2.
    """

def decode_moment(
    values: numpy.typing.ArrayLike,
    codes: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike | None,
    *,
    second: bool,
) -> None:
    """
    The float32 values of a stored moment.
    """

def dequantize_int4(
    out: numpy.typing.ArrayLike,
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    *,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Decodes into `out`.
    """

def dequantize_int4_list(
    out: collections.abc.Sequence[numpy.typing.ArrayLike],
    packed: collections.abc.Sequence[numpy.typing.ArrayLike],
    scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    offsets: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    group_sizes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    dim: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Decodes each of a list into its `out`.
    """

def encode_moment(
    codes: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike | None,
    values: numpy.typing.ArrayLike,
    *,
    second: bool,
    seed: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Stores a float32 moment as a step does: in bfloat16 or 8-bit blocks.
    """

def factored_directions(
    low: collections.abc.Sequence[numpy.typing.ArrayLike],
    row_means: collections.abc.Sequence[numpy.typing.ArrayLike],
    row_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    col_means: collections.abc.Sequence[numpy.typing.ArrayLike],
    col_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    decays: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    *,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    threshold: typing.SupportsFloat | typing.SupportsIndex,
) -> None:
    """
    Adafactor's directions of low-rank gradients, in their place.
    """

def factored_svd(
    u: numpy.typing.ArrayLike,
    s: numpy.typing.ArrayLike,
    vh: numpy.typing.ArrayLike,
    b: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
) -> None:
    """
    Leading singular triplets of the product b a into u, s, vh.
    """

def fast_bfloat16() -> bool:
    """
    Whether bfloat16 products are faster than float32 here, so that precision 'medium' uses them.
    """

def follow_step(
    errors: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    bases: collections.abc.Sequence[numpy.typing.ArrayLike],
    low: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq: collections.abc.Sequence[numpy.typing.ArrayLike],
    right: collections.abc.Sequence[bool],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    beta2: typing.SupportsFloat | typing.SupportsIndex,
    rho: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    precision: str,
) -> None:
    """
    One power step of subspaces that follow the gradient, for a list of weights.
    """

def gaussian(
    out: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    divisors: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
) -> None:
    """
    Fills each of a list with standard normal numbers of its seed, over its divisor.
    """

def gemm(
    c: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
    b: numpy.typing.ArrayLike,
    *,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    beta: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    precision: str = "highest",
) -> None:
    """
    c <- alpha a b + beta c for (batches of) matrices of any strides.
    """

def int4_project(
    out: numpy.typing.ArrayLike,
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    x: numpy.typing.ArrayLike,
    *,
    rows: typing.SupportsInt | typing.SupportsIndex,
    cols: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    back: bool = False,
) -> None:
    """
    out <- Pᵀ x, or P x with `back`, for the packed matrix P [rows, cols].
    """

def isa() -> str:
    """
    The instruction-set level in use.
    """

def isa_levels() -> list[str]:
    """
    The levels that this machine and build have, lowest first.
    """

def kalman_diag_gain(
    k: numpy.typing.ArrayLike, p: numpy.typing.ArrayLike, h: numpy.typing.ArrayLike, r: numpy.typing.ArrayLike
) -> None:
    """
    The gain into k [n, m]; r is a number, a diagonal or a matrix.
    """

def kalman_diag_step(
    new_theta: collections.abc.Sequence[numpy.typing.ArrayLike],
    new_p: collections.abc.Sequence[numpy.typing.ArrayLike],
    theta: collections.abc.Sequence[numpy.typing.ArrayLike],
    p: collections.abc.Sequence[numpy.typing.ArrayLike],
    jac: collections.abc.Sequence[numpy.typing.ArrayLike],
    score: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    limit: typing.SupportsFloat | typing.SupportsIndex,
) -> bool:
    """
    One step over a list; false, with nothing written, where an argument is not finite or a p negative.
    """

def kalman_diag_step_(
    theta: collections.abc.Sequence[numpy.typing.ArrayLike],
    p: collections.abc.Sequence[numpy.typing.ArrayLike],
    jac: collections.abc.Sequence[numpy.typing.ArrayLike],
    score: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    limit: typing.SupportsFloat | typing.SupportsIndex,
) -> bool:
    """
    The same in place.
    """

def lines_step(
    params: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    scales: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    lines: str,
    iterations: typing.SupportsInt | typing.SupportsIndex,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    stochastic: bool,
) -> None:
    """
    A list of weights along their gradients, whose rows or columns have a root mean square of 1.
    """

def mkl_roots() -> bool:
    """
    Whether the square roots that torch has from MKL are in this process.
    """

def newton_schulz(
    to: collections.abc.Sequence[numpy.typing.ArrayLike],
    from_: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    coefficients: typing.Annotated[
        collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], "FixedSize(3)"
    ],
    steps: typing.SupportsInt | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
) -> None:
    """
    to <- the nearest orthogonal matrices, roughly, of a list of (batches of) matrices.
    """

def nonfinite(arrays: collections.abc.Sequence[numpy.typing.ArrayLike]) -> list[int]:
    """
    The numbers of the contiguous arrays with inf or nan.
    """

def norms(arrays: collections.abc.Sequence[numpy.typing.ArrayLike]) -> list[float]:
    """
    The Frobenius norm of each matrix.
    """

def num_threads() -> int:
    """
    Threads that the next kernel may use.
    """

def orthonormalize(q: numpy.typing.ArrayLike, y: numpy.typing.ArrayLike, *, method: str = "auto") -> bool:
    """
    Orthonormal basis of the columns of `y` into q; False where the method breaks down.
    """

def overlaps_itself(array: numpy.typing.ArrayLike) -> bool:
    """
    Whether two elements of `array` share memory.
    """

def philox_bits(
    out: numpy.typing.ArrayLike,
    seed: typing.SupportsInt | typing.SupportsIndex,
    stream: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
    first: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Fills `out` (int64) with the 32-bit values of elements first, first + 1, ...
    """

def plan_chain(dims: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> list[list[int]]:
    """
    Last split of factors i .. j of a chain of plain matrices [dims[i], dims[i + 1]].
    """

def qb(
    q: collections.abc.Sequence[numpy.typing.ArrayLike],
    b: collections.abc.Sequence[numpy.typing.ArrayLike],
    a: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    energy: typing.SupportsFloat | typing.SupportsIndex,
    block: typing.SupportsInt | typing.SupportsIndex = 16,
    niter: typing.SupportsInt | typing.SupportsIndex = 1,
    seed: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> list[tuple[int, float]]:
    """
    Grows q b of each array of the list `a` until it captures `energy`; (rank, captured) of each.
    """

def quantize_int4(
    packed: numpy.typing.ArrayLike,
    scales: numpy.typing.ArrayLike,
    offsets: numpy.typing.ArrayLike | None,
    x: numpy.typing.ArrayLike,
    *,
    dim: typing.SupportsInt | typing.SupportsIndex,
    group_size: typing.SupportsInt | typing.SupportsIndex,
    scheme: str,
    seed: typing.SupportsInt | typing.SupportsIndex | None = None,
    refused: numpy.typing.ArrayLike | None = None,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Codes of `x` into packed, scales and offsets; with a seed rounded stochastically.
    """

def range_finder(
    q: collections.abc.Sequence[numpy.typing.ArrayLike],
    a: collections.abc.Sequence[numpy.typing.ArrayLike],
    *,
    oversample: typing.SupportsInt | typing.SupportsIndex = 10,
    niter: typing.SupportsInt | typing.SupportsIndex = 2,
    basis: collections.abc.Sequence[numpy.typing.ArrayLike | None],
    seed: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    precision: str = "highest",
) -> None:
    """
    Leading left singular vectors of each array of the list `a` into its partner in q.
    """

def rotate_moments(
    m_out: numpy.typing.ArrayLike,
    v_out: numpy.typing.ArrayLike,
    m: numpy.typing.ArrayLike,
    v: numpy.typing.ArrayLike,
    old_indices: numpy.typing.ArrayLike,
    new_indices: numpy.typing.ArrayLike,
    *,
    side: str,
) -> None:
    """
    Both moments moved to where their atom is in the new list.
    """

def round_stochastic(
    to: numpy.typing.ArrayLike,
    from_: numpy.typing.ArrayLike,
    *,
    seed: typing.SupportsInt | typing.SupportsIndex,
    step: typing.SupportsInt | typing.SupportsIndex,
) -> None:
    """
    Rounds a matrix as a step rounds the weights: bfloat16 stochastically, other dtypes to nearest.
    """

def rsvd(
    u: numpy.typing.ArrayLike,
    s: numpy.typing.ArrayLike,
    vh: numpy.typing.ArrayLike,
    a: numpy.typing.ArrayLike,
    *,
    oversample: typing.SupportsInt | typing.SupportsIndex = 10,
    niter: typing.SupportsInt | typing.SupportsIndex = 2,
    basis: numpy.typing.ArrayLike | None = None,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    precision: str = "highest",
) -> None:
    """
    Leading singular triplets of `a` into u, s, vh.
    """

def scaled_gradients(
    new_a: collections.abc.Sequence[numpy.typing.ArrayLike],
    new_b: collections.abc.Sequence[numpy.typing.ArrayLike],
    grad_a: collections.abc.Sequence[numpy.typing.ArrayLike],
    grad_b: collections.abc.Sequence[numpy.typing.ArrayLike],
    a: collections.abc.Sequence[numpy.typing.ArrayLike],
    b: collections.abc.Sequence[numpy.typing.ArrayLike],
    dampings: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
) -> None:
    """
    For each pair of factors: new_a <- (bᵀ b + damping I)⁻¹ grad_a, new_b <- grad_b (a aᵀ + damping I)⁻¹.
    """

def selected_step(
    params: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    lines: collections.abc.Sequence[numpy.typing.ArrayLike],
    rows: collections.abc.Sequence[bool],
    exp_avg: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    corrections: collections.abc.Sequence[
        tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
    ],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    betas: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex],
    eps: typing.SupportsFloat | typing.SupportsIndex,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    sign_scale: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    stochastic: bool,
    fused: bool,
    roots: str,
) -> None:
    """
    Adam of some rows or columns of each of a list of weights, and the sign of the gradient elsewhere.
    """

def set_isa(level: str) -> None:
    """
    Lowers the level; ValueError for one that is not available.
    """

def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets it, for this thread; torch.set_num_threads does the same.
    """

def share_memory(arrays: collections.abc.Sequence[numpy.typing.ArrayLike]) -> bool:
    """
    Whether two of `arrays` share memory.
    """

def sketch(
    out: numpy.typing.ArrayLike,
    *,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    step: typing.SupportsInt | typing.SupportsIndex = 0,
    stream: typing.SupportsInt | typing.SupportsIndex = 0,
) -> None:
    """
    Fills `out` with the random signs that a sketch of its shape has.
    """

def sketched_step(
    params: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    bases: collections.abc.Sequence[numpy.typing.ArrayLike],
    low: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    row_means: collections.abc.Sequence[numpy.typing.ArrayLike],
    col_means: collections.abc.Sequence[numpy.typing.ArrayLike],
    right: collections.abc.Sequence[bool],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    decays: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    *,
    beta1: typing.SupportsFloat | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    threshold: typing.SupportsFloat | typing.SupportsIndex,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    stochastic: bool,
    precision: str,
) -> None:
    """
    Adafactor with a sketched momentum, for a list of weights.
    """

def subspace_project(
    low: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    bases: collections.abc.Sequence[numpy.typing.ArrayLike],
    right: collections.abc.Sequence[bool],
    *,
    maximize: bool = False,
    precision: str = "highest",
) -> bool:
    """
    Low-rank gradients of a list; false if one of them is not finite.
    """

def subspace_update(
    params: collections.abc.Sequence[numpy.typing.ArrayLike],
    grads: collections.abc.Sequence[numpy.typing.ArrayLike],
    bases: collections.abc.Sequence[numpy.typing.ArrayLike],
    low: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq: collections.abc.Sequence[numpy.typing.ArrayLike],
    exp_avg_sq_scales: collections.abc.Sequence[numpy.typing.ArrayLike],
    limits: collections.abc.Sequence[numpy.typing.ArrayLike],
    right: collections.abc.Sequence[bool],
    steps: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    seeds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    rule: str,
    betas: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex],
    eps: typing.SupportsFloat | typing.SupportsIndex,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    scale: typing.SupportsFloat | typing.SupportsIndex,
    residual: str,
    residual_scale: typing.SupportsFloat | typing.SupportsIndex,
    cap: typing.SupportsFloat | typing.SupportsIndex,
    growth: typing.SupportsFloat | typing.SupportsIndex,
    maximize: bool,
    stochastic: bool,
    precision: str = "highest",
) -> None:
    """
    Moments and weights of a list, from the low-rank gradients, which it overwrites.
    """

def taylor_error(
    largest: typing.SupportsFloat | typing.SupportsIndex, degree: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    Estimated relative error of the chained gradient where exp is cut after an even degree.
    """

def taylor_score(
    error: typing.SupportsFloat | typing.SupportsIndex, degree: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    The largest score whose `taylor_error` is at most `error`.
    """
