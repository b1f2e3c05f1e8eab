"""The checkpoint file: everything comes back as it was, and a failed write leaves the old one."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from lowrank_core.cli import checkpoint
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import write_atomic
from safetensors import safe_open

TREE = {
    "numbers": [1, -2.5, 1e-300, float("inf"), True, None, "text", "ümlaut"],
    "state": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.1 + 0.2)}, 12: {"empty": torch.zeros(0, 3)}},
    "tensors": {
        "bfloat16": torch.tensor([[1.5, -0.0], [float("nan"), 3e38]]).bfloat16(),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "slice": torch.arange(10, dtype=torch.int8)[2:5],
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    },
    "nothing": {},
}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TREE)
    assert equal(checkpoint.load(path), TREE)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_are_ordinary_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TREE)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) >= {"state.0.step", "tensors.bfloat16"}
        assert torch.equal(file.get_tensor("tensors.transposed"), TREE["tensors"]["transposed"])


def test_other_leaves_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"`a\.1` must be a tensor or a plain value, got object"):
        checkpoint.save(tmp_path / "x", {"a": [0, object()]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(CliError, match="No space left on device"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"w": torch.arange(4.0), "n": 1})
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            tree = checkpoint.load(path)
        except CliError:
            continue
        assert equal(tree, {"w": torch.arange(4.0), "n": 1}), at  # padding: nothing that is read has changed
