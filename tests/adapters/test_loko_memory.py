"""A step on a language model makes little beside its logits, however many rows it observes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from loko_cases import CLASSES, batch, model
from lowrank_core import adapters
from lowrank_core.adapters import cotangent_rows, observation
from testing import step_bounds

SHAPE, VOCABULARY = (4, 64), 16384
# A small step first: it brings in the code and the pool. The peak is then set back.
PROGRAM = """
import torch
from lowrank_core import adapters

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

def rise(shape, vocabulary, dtype, **keys):
    model = torch.nn.Sequential(
        torch.nn.Embedding(vocabulary, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, vocabulary)
    )
    model = model.requires_grad_(False).to(getattr(torch, dtype))
    model[1] = adapters.LoRALinear(model[1], rank=2)
    optimizer, tokens = adapters.LoKO(model, **keys), torch.randint(vocabulary, shape)
    tokens[0, ::3] = 1
    logits, targets = model(tokens), tokens.masked_fill(tokens == 1, -100)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    optimizer.step(logits, targets)
    return status("VmHWM") - before, logits.untyped_storage().nbytes()

for case in {cases!r}:
    rise((2, 8), 64, **case)
    print(*rise({shape!r}, {vocabulary!r}, **case))
"""
CASES: list[tuple[dict[str, object], float]] = [
    ({"dtype": "float32"}, 1),
    ({"dtype": "float32", "draws": 16}, 1),
    ({"dtype": "bfloat16"}, 1),
    ({"dtype": "float32", "batch": "sequential"}, 2),  # that of the sample before is still there
    ({"dtype": "float32", "batched": True, "chunk": 3}, 1 + 3),
]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs the peak that Linux keeps")
def test_a_step_holds_one_cotangent_at_a_time() -> None:
    cases = [case for case, _ in CASES]
    code = PROGRAM.format(cases=cases, shape=SHAPE, vocabulary=VOCABULARY)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # each tensor gets pages of its own, which go back when it does
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # A block's logits, their float64 copy, probabilities, what is subtracted, divided and rounded; rows and code.
    beside = 6 * 8 * cotangent_rows.BLOCK + step_bounds.workspaces(1)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for (case, cotangents), (found, logits) in zip(CASES, lines, strict=True):
        assert found <= cotangents * logits + beside, (case, found / logits)
        assert beside < 2 * logits


@pytest.mark.parametrize(("fisher", "rows"), [("full", 9), ("lumped", 15)])
def test_rows_beyond_what_one_update_can_take_are_refused(
    fisher: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token has C rows, or keep + 2; each sample in turn has its own."""
    net, (x, y) = model(), batch(4)
    monkeypatch.setattr(observation, "MOST_OBSERVED", 2 * rows // 3)
    for shape in ((4,), (2, 2)):
        counted = y.clone().view(shape)
        counted.view(-1)[0] = -100
        rule = f"`fisher` must give at most {2 * rows // 3} rows of one update, got '{fisher}', {rows} rows .*; pass"
        with pytest.raises(ValueError, match=rule):
            adapters.LoKO(net, fisher=fisher, keep=3).step(net(x).view(*shape, CLASSES), counted)
        one = adapters.LoKO(net, fisher=fisher, keep=3, batch="sequential")
        one.step(net(x).view(*shape, CLASSES), counted)
        assert one.skipped_steps == 0


def test_a_vocabulary_with_all_its_rows_is_refused_before_anything_is_made() -> None:
    net = torch.nn.Sequential(torch.nn.Embedding(5000, 4), torch.nn.Linear(4, 5000))
    tokens = torch.randint(5000, (4, 32))
    with pytest.raises(ValueError, match=r"got 'full', 640000 rows for `outputs` of shape \[4, 32, 5000\]"):
        adapters.LoKO(net, fisher="full").step(net(tokens), tokens)
