"""The decoder: causal, positions relative, sizes as asked for, weights by seed."""

from __future__ import annotations

import math

import pytest
import torch
from lowrank_core.cli.model import Decoder, ModelShape, next_byte_loss, rope_tables, rotate
from lowrank_core.cli.presets import Sizes

SHAPE = ModelShape(dim=16, layers=2, heads=2, ffn=24, seq_len=12)


@pytest.fixture
def model() -> Decoder:
    return Decoder(SHAPE, seed=3).double()


def test_future_bytes_do_not_change_the_past(model):
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 12, 256)
    for cut in range(1, 12):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % 256
        other = model(changed)
        assert torch.equal(other[:, :cut], logits[:, :cut])
        assert not torch.equal(other[:, cut], logits[:, cut])


def test_shorter_input_sees_the_same_positions(model):
    tokens = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


def test_rotary_scores_depend_on_distance_alone():
    """<R_i q, R_j k> = <R_{i+s} q, R_{j+s} k>, and norms are kept. The tables are float32: u = 2^-24 an entry."""
    cos, sin = rope_tables(64, 8)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = rotate(q.expand(64, 8), cos, sin) @ rotate(k.expand(64, 8), cos, sin).T
    bound = 4 * 2**-24 * float(q.norm() * k.norm())
    for distance in range(64):
        diagonal = scores.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() <= 2 * bound
    norms = rotate(q.expand(64, 8), cos, sin).norm(dim=-1)
    assert (norms - q.norm()).abs().max() <= 4 * 2**-24 * q.norm()


def test_rotation_keeps_the_dtype():
    cos, sin = rope_tables(4, 6)
    assert rotate(torch.ones(4, 6, dtype=torch.bfloat16), cos, sin).dtype == torch.bfloat16


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = Decoder(SHAPE, seed=5)
    torch.manual_seed(2)
    two, other = Decoder(SHAPE, seed=5), Decoder(SHAPE, seed=6)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_names_and_shapes_are_those_of_the_estimator():
    (ends, once), (block, layers) = Sizes(dim=16, ffn=24, layers=2, vocab=256).parts()
    assert (once, layers) == (1, 2)
    shapes = ends | {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    assert {name: tuple(p.shape) for name, p in Decoder(SHAPE, seed=0).named_parameters()} == shapes


def test_untrained_loss_is_that_of_a_guess():
    windows = torch.randint(0, 256, (8, 13), generator=torch.Generator().manual_seed(0))
    loss = next_byte_loss(Decoder(SHAPE, seed=0), windows)
    assert loss.dtype == torch.float32 and abs(float(loss.detach()) - math.log(256)) < 0.2
