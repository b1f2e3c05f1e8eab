"""Slots are made once, and anew as soon as something that they were made of has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW


def made(*shapes, **keys):
    named = [(f"w{i}", torch.nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]
    return GaLoreAdamW([{"params": named, **keys}], rank=4)


def slots(optimizer):
    return [slot for _, _, slot in optimizer._slots()]


def test_held_from_call_to_call():
    optimizer = made((8, 16), (16,))
    assert all(one is other for one, other in zip(slots(optimizer), slots(optimizer), strict=True))


def test_complex_weights_are_looked_at_each_time():
    """Their real view is of the memory that they have now."""
    optimizer = GaLoreAdamW([torch.nn.Parameter(torch.zeros(8, dtype=torch.complex64))], rank=None)
    (param,) = optimizer.param_groups[0]["params"]
    slots(optimizer)
    param.data = torch.ones(8, dtype=torch.complex64)
    assert slots(optimizer)[0].weight.data_ptr() == param.data_ptr()


EDITS = {
    "rank": lambda group: group.update(rank=2),
    "proj_type": lambda group: group.update(proj_type="right"),
    "force_projection": lambda group: group.update(force_projection=True),
    "seed": lambda group: group.update(seed=7),
    "a name": lambda group: group["param_names"].__setitem__(0, "other"),
    "shape": lambda group: setattr(group["params"][0], "data", torch.zeros(16, 8)),
    "dtype": lambda group: setattr(group["params"][0], "data", group["params"][0].data.double()),
    "a parameter": lambda group: group["params"].__setitem__(0, torch.nn.Parameter(torch.zeros(4, 4))),
    "one more": lambda group: group["params"].append(torch.nn.Parameter(torch.zeros(9, 9))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_act_at_once(edit):
    optimizer = made((4, 16), (16, 12))
    before = slots(optimizer)
    EDITS[edit](optimizer.param_groups[0])
    if edit == "one more":
        optimizer.param_groups[0]["param_names"].append("w2")
    after, fresh = slots(optimizer), slots(copy.copy(optimizer))
    facts = [
        [(s.param, s.index, s.name, s.geometry, s.note, s.seed, s.turn, s.made_for) for s in some]
        for some in (after, fresh)
    ]
    assert facts[0] == facts[1]
    assert after[0] is not before[0]


def test_groups_are_numbered_through():
    optimizer = made((8, 16), (16,))
    slots(optimizer)
    optimizer.add_param_group({"params": [("v", torch.nn.Parameter(torch.zeros(8, 8)))]})
    assert [slot.index for slot in slots(optimizer)] == [0, 1, 2]
    optimizer.param_groups.reverse()
    assert [(slot.name, slot.index) for slot in slots(optimizer)] == [("v", 0), ("w0", 1), ("w1", 2)]
