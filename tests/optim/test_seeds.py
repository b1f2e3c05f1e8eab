"""Seeds are a function of position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.optim.seeds import mix_seed

words = st.integers(-(2**63), 2**64)


@given(words, st.lists(words, max_size=3))
def test_a_seed_is_a_63_bit_function_of_its_position(seed: int, position: list[int]) -> None:
    assert 0 <= mix_seed(seed, *position) < 2**63
    assert mix_seed(seed, *position) == mix_seed(seed, *position)


def test_neighbours_have_different_seeds() -> None:
    found = {mix_seed(*at) for at in ((s, p, r) for s in range(16) for p in range(64) for r in range(64))}
    assert len(found) == 16 * 64 * 64
    assert mix_seed(0, 1, 2) != mix_seed(0, 2, 1)


def test_half_the_bits_change_with_one_bit_of_the_position() -> None:
    # 63 fair bits: 31.5 on average, and 4096 draws put the mean within 5 standard errors of it.
    flips = [
        (mix_seed(0, i, j) ^ mix_seed(0, i ^ (1 << (j % 16)), j)).bit_count() for i in range(64) for j in range(64)
    ]
    assert abs(sum(flips) / len(flips) - 31.5) < 5 * (63**0.5 / 2) / len(flips) ** 0.5


def test_known_answers() -> None:
    assert mix_seed(0) == 0xE220A8397B1DCDAF >> 1  # the first output of splitmix64 started at 0
    assert mix_seed(1, 2, 3) == 7510213797696614745  # pinned: with another value a resumed run would differ
