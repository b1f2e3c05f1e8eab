"""Steps, skips, saves, loads and edits in any order, against an optimizer that never stopped. To the bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lowrank_core.optim import GaLoreAdamW
from optim_cases import draw, same
from torch import Tensor, nn

SHAPES = ((6, 9), (9, 6), (7, 7), (5,), (4, 3, 2), ())
SPARE = ((8, 5), (3,), (5, 8))  # of groups that come later
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
KEYS: dict[str, Any] = {"lr": 0.05, "rank": 2, "update_proj_gap": 3, "scale": 0.5}
EDITS = {
    "lr": st.sampled_from([0.0, 0.01, 0.2]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "scale": st.sampled_from([0.25, 1.0]),
    "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.75)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "update_proj_gap": st.sampled_from([1, 2, 5]),
    "moments": st.sampled_from(["keep", "rotate"]),
    "niter": st.sampled_from([0, 2]),
    "seed": st.sampled_from([0, 9]),
    "maximize": st.booleans(),
    "rounding": st.sampled_from(["nearest", "stochastic"]),
}
edits = st.sampled_from(sorted(EDITS)).flatmap(lambda key: st.tuples(st.just(key), EDITS[key]))


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return draw(*(shape or (1,)), seed=seed).view(shape).to(dtype)


class Run:
    """Weights and their optimizer."""

    def __init__(self, dtype: torch.dtype, keys: dict[str, Any]) -> None:
        self.keys = {**KEYS, **keys}
        self.groups = [[nn.Parameter(numbers(shape, dtype)) for shape in SHAPES]]
        self.proj_types = ["std"]
        self.optimizer = self.built()

    def built(self) -> GaLoreAdamW:
        """As the program that trains builds it; all that was edited since comes with the state."""
        pairs = zip(self.groups, self.proj_types, strict=True)
        groups = [{"params": group, "proj_type": proj_type, "rank": self.keys["rank"]} for group, proj_type in pairs]
        return GaLoreAdamW(groups, **self.keys)

    @property
    def weights(self) -> list[nn.Parameter]:
        return [weight for group in self.groups for weight in group]

    def set_gradients(self, seed: int, scale: float, without: int | None) -> None:
        for number, weight in enumerate(self.weights):
            weight.grad = scale * numbers(tuple(weight.shape), weight.dtype, seed)
            if number == without:
                weight.grad = None

    def add_group(self, shape: tuple[int, ...], lr: float, proj_type: str) -> None:
        self.groups.append([nn.Parameter(numbers(shape, self.weights[0].dtype, 7))])
        self.proj_types.append(proj_type)
        keys = {"lr": lr, "proj_type": proj_type, "rank": self.keys["rank"]}
        self.optimizer.add_param_group({"params": self.groups[-1], **keys})

    def stop_and_resume(self, moved: bool) -> None:
        """Everything that lives in memory is lost but what was written, and what builds the model."""
        file = io.BytesIO()
        torch.save(
            {"weights": [weight.detach() for weight in self.weights], "state": self.optimizer.state_dict()}, file
        )
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        if moved:
            for group in self.groups:
                group[:] = [nn.Parameter(torch.empty_like(weight)) for weight in group]
        for weight, value in zip(self.weights, saved["weights"], strict=True):
            weight.detach().copy_(value)
        self.optimizer = self.built()
        self.optimizer.load_state_dict(saved["state"])


class AnyOrder(RuleBasedStateMachine):
    """`ours` is stopped and resumed, `twin` is not."""

    skipped = 0

    @initialize(
        dtype=st.sampled_from(DTYPES),
        projector=st.sampled_from(["rsvd", "svd"]),
        moment_dtype=st.sampled_from(["auto", "float32", "bfloat16", "int8"]),
        plain_moment_dtype=st.sampled_from([None, "float32", "int8"]),
        steps=st.integers(0, 4),
    )
    def start(self, dtype: torch.dtype, steps: int, **keys: str | None) -> None:
        self.ours, self.twin = Run(dtype, keys), Run(dtype, keys)
        self.number, self.spare = 0, list(SPARE)
        for _ in range(steps):
            self.take()

    def both(self) -> tuple[Run, Run]:
        return self.ours, self.twin

    def take(self, scale: float = 1.0, without: int | None = None) -> None:
        self.number += 1
        for run in self.both():
            run.set_gradients(self.number, scale, without)
            run.optimizer.step()

    @rule(without=st.none() | st.integers(0, len(SHAPES) - 1))
    def step(self, without: int | None) -> None:
        """With a gradient for every weight, or for all but one."""
        self.take(without=without)

    @rule()
    def step_of_zeros(self) -> None:
        self.take(scale=0.0)

    @rule(at=st.integers(0, len(SHAPES) - 1), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    def step_that_is_skipped(self, at: int, value: float) -> None:
        before = copy.deepcopy([self.ours.weights, self.ours.optimizer.state_dict()])
        self.number, self.skipped = self.number + 1, self.skipped + 1
        for run in self.both():
            run.set_gradients(self.number, 1.0, None)
            run.weights[at].grad.view(-1)[-1] = value
            run.optimizer.step()
        assert same(before, [self.ours.weights, self.ours.optimizer.state_dict()])
        assert self.twin.optimizer.skipped_steps == self.skipped

    @rule()
    def no_gradient_at_all(self) -> None:
        before = copy.deepcopy([self.ours.weights, self.ours.optimizer.state_dict()])
        for run in self.both():
            run.optimizer.zero_grad()
            run.optimizer.step()
        assert same(before, [self.ours.weights, self.ours.optimizer.state_dict()])

    @rule(moved=st.booleans())
    def stop_and_resume(self, moved: bool) -> None:
        self.ours.stop_and_resume(moved)

    @rule()
    def load_its_own_state(self) -> None:
        self.ours.optimizer.load_state_dict(copy.deepcopy(self.ours.optimizer.state_dict()))

    @rule(edit=edits, last=st.booleans())
    def edit_a_group(self, edit: tuple[str, Any], last: bool) -> None:
        for run in self.both():
            run.optimizer.param_groups[-1 if last else 0][edit[0]] = edit[1]

    @precondition(lambda self: self.spare)
    @rule(lr=st.sampled_from([0.01, 0.1]), proj_type=st.sampled_from(["std", "full"]))
    def add_a_group(self, lr: float, proj_type: str) -> None:
        shape = self.spare.pop()
        for run in self.both():
            run.add_group(shape, lr, proj_type)

    @invariant()
    def nothing_shows(self) -> None:
        ours, twin = self.both()
        assert same([w.detach() for w in ours.weights], [w.detach() for w in twin.weights])
        assert same(ours.optimizer.state_dict(), twin.optimizer.state_dict())
        assert all(bool(w.isfinite().all()) for w in ours.weights)


AnyOrder.TestCase.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
TestAnyOrder = AnyOrder.TestCase
