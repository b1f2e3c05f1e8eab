"""Error bounds. A test takes its tolerance from here, never from a number of its own.

A sum of k products has the a-priori error gamma(k) times the sum of their magnitudes. The worst case is gamma(k) = k u;
rounding errors of independent signs stay below lambda sqrt(k) u but for a chance of 2 exp(-lambda² / 2), at lambda = 6
some 3e-8 (Higham, Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019).
The second is used: it is what a wrong kernel cannot hide under. A Frobenius norm gathers so many elements that their
root mean square is what counts; there lambda = 2 is ample (a rounding error has a standard deviation of u / sqrt 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAMBDA = 6.0  # for every element
LAMBDA_NORM = 2.0  # for a Frobenius norm
EQUAL = 1e-12  # two forms of a formula in float64, of moderate conditions: what is claimed of the adapters' optimizers
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SMALLEST = {dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in UNIT}


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a matrix of `dtype` is factored in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gamma(k: int, dtype: torch.dtype) -> float:
    """Relative error of a sum of k products accumulated in `dtype`."""
    return LAMBDA * math.sqrt(max(k, 1)) * UNIT[dtype]


def assert_equal(found: Tensor, exact: Tensor) -> None:
    """Fails unless two float64 tensors are the same to EQUAL."""
    assert found.dtype == exact.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=EQUAL, atol=EQUAL)


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Elementwise bound of a @ b (float64 operands) accumulated as for `dtype` and rounded once to it."""
    exact, magnitude = a @ b, a.abs() @ b.abs()
    # k + 2: the bound that the product's header documents.
    accumulated = gamma(a.shape[-1] + 2, factor_dtype(dtype)) * magnitude
    return accumulated + UNIT[dtype] * (exact.abs() + accumulated) + _SMALLEST[dtype]


def orthonormality(dtype: torch.dtype, width: int) -> float:
    """Largest entry of QᵀQ - I where `width` columns were orthonormalized: 5e-6 in float32, as documented. In float64
    the same number of units; what Jacobi leaves, which stops at cosines of width units; the rounding of its rotations
    and of the product with them."""
    if factor_dtype(dtype) == torch.float32:
        return 5e-6
    unit = UNIT[torch.float64]
    return 5e-6 / UNIT[torch.float32] * unit + width * unit + 2 * gamma(width, dtype)


def _stage(m: int, n: int, width: int, dtype: torch.dtype) -> float:
    """One product with a [m, n] and one orthonormalization of what comes out, relative to ‖a‖_F: the partial sums of
    Qᵀa for orthonormal Q stay below the norms of a's columns, whatever the number of rows of Qᵀ."""
    roots = math.sqrt(m) + math.sqrt(n) + 2 * math.sqrt(width)
    return LAMBDA_NORM * max(roots, 1.0) * UNIT[factor_dtype(dtype)]


def coefficients(a: Tensor, width: int) -> float:
    """‖a V - U S‖_F of a factorization that came out of a W, W of `width` orthonormal columns: one product, one QR, two
    rotations; and the cosines of up to width units at which Jacobi stops in float64."""
    jacobi = width * UNIT[torch.float64]
    return (2 * _stage(*a.shape[-2:], width, a.dtype) + jacobi) * norm(a)


def singular_values(a: Tensor, width: int, niter: int) -> float:
    """‖s - s_exact‖ for the same sketch. Each product perturbs what the next one reads by one stage's error times
    ‖a‖_F; directions that this turns are weak ones, so it passes to s at first order only (Weyl)."""
    return (2 * niter + 2) * _stage(*a.shape[-2:], width, a.dtype) * norm(a)


def medium(a: Tensor) -> float:
    """What the bfloat16 rounding of a matrix may add to ‖a - Q Qᵀ a‖_F: the range found is that of a + E,
    ‖E‖_F <= u ‖a‖_F, and ‖(1 - QQᵀ) a‖ <= ‖(1 - QQᵀ)(a + E)‖ + ‖E‖, once more for the optimum of a + E."""
    return 2 * UNIT[torch.bfloat16] * norm(a)


def norm(a: Tensor) -> float:
    """Frobenius norm in float64, of the whole batch."""
    return float(torch.linalg.vector_norm(a.double()))


def transform(n: int, dtype: torch.dtype) -> float:
    """‖error‖₂ over ‖x‖₂ of a fast orthogonal transform of n numbers: each halving adds at most about 7 u (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2nd ed., theorem 24.2; a radix p counts as log2 p of them), the
    steps before and after four more. Lengths with a large prime factor go through two transforms of up to four times
    the length and three products, and sums of up to n products where they are short."""
    steps = math.log2(max(n, 1)) + 4
    if _largest_prime(n) > 61:
        steps = 2 * (math.log2(4 * n) + 4) + 3
    return 8 * steps * UNIT[factor_dtype(dtype)]


def _largest_prime(n: int) -> int:
    p = 2
    while p * p <= n:
        n, p = (n // p, p) if n % p == 0 and n > p else (n, p + 1)
    return n
