"""Text that a model writes."""

from __future__ import annotations

import torch
from lowrank_core.cli.sample import as_text, continuation
from torch import nn

PROMPT = torch.arange(5)


class Fixed(nn.Module):
    """The same logits everywhere; remembers what it was given, and in which mode."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.given, self.modes = logits, [], set()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.given.append(tokens[0].tolist())
        self.modes.add(self.training)
        return self.logits.expand(1, tokens.shape[1], 256)


def write(logits: torch.Tensor, *, temperature: float = 1.0, seed: int = 0, length: int = 64) -> list[int]:
    model = Fixed(logits)
    return continuation(model, PROMPT, length=length, window=8, temperature=temperature, seed=seed).tolist()


def test_each_byte_is_given_those_before_it():
    model = Fixed(torch.zeros(256))
    text = continuation(model, PROMPT, length=12, window=8, temperature=1.0, seed=0).tolist()
    whole = PROMPT.tolist() + text
    assert len(text) == 12
    assert model.given == [whole[max(0, end - 8) : end] for end in range(5, 17)]


def test_model_is_in_evaluation_and_comes_back():
    model = Fixed(torch.zeros(256))
    for training in (True, False):
        model.train(training)
        continuation(model, PROMPT, length=2, window=8, temperature=1.0, seed=0)
        assert model.modes == {False} and model.training is training


def test_seed_alone_decides_the_draws():
    logits = torch.zeros(256)
    torch.manual_seed(1)
    first = write(logits)
    state = torch.random.get_rng_state()
    assert write(logits) == first and torch.equal(torch.random.get_rng_state(), state)
    assert write(logits, seed=1) != first


def test_temperature_divides_the_logits():
    logits = torch.linspace(0, 8, 256)
    assert write(logits, temperature=0.5) == write(logits * 2) != write(logits)
    likely = torch.zeros(256)
    likely[65] = 1.0
    assert write(likely, temperature=1e-3) == [65] * 64


def test_what_is_no_text_is_replaced():
    assert as_text(torch.tensor(list(b"a\n\tb\x1b[2J\r\x00\xff\xc3\xa9"))) == "a\n\tb�[2J���é"
