"""The estimate of state memory against what optimizers hold."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import memory, optim
from lowrank_core.memory.estimate import Keys
from lowrank_core.memory.methods import FACADES, METHODS
from lowrank_core.optim import GaLoreAdamW, devices, estimate_state_bytes, formula_state_bytes, param_groups
from torch import nn

KNOWN = ", ".join(("adamw", *METHODS, *FACADES))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.up, self.down = nn.Linear(12, 30), nn.Linear(30, 12, bias=False)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)


def held_after_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.dtype)
    optimizer.step()
    if isinstance(optimizer, GaLoreAdamW):
        return optimizer.state_bytes()
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_adamw_is_what_torch_holds(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    held = held_after_a_step(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    assert estimate_state_bytes(model, "adamw") == held
    assert estimate_state_bytes(Model(), "adamw", dtype=dtype) == held
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert estimate_state_bytes(shapes, "adamw", dtype=dtype) == held
    assert estimate_state_bytes(list(shapes.values()), "adamw", dtype=dtype) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("keys", [{}, {"proj_type": "full"}, {"proj_type": "reverse_std"}, {"projector": "svd"}])
@pytest.mark.parametrize("exclude", ["embed", ()])
def test_galore_is_what_the_optimizer_holds(dtype: torch.dtype, keys: dict, exclude: str | tuple[()]) -> None:
    model = Model().to(dtype)
    optimizer = GaLoreAdamW(param_groups(model, ["embed", "up", "down"], exclude, rank=5, verbose=False, **keys))
    held = held_after_a_step(model, optimizer)
    targets = ["embed", "up", "down"]
    assert estimate_state_bytes(model, rank=5, target_modules=targets, exclude=exclude, **keys) == held
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert estimate_state_bytes(shapes, rank=5, dtype=dtype, exclude=exclude, **keys) == held


class Everything(nn.Module):
    """Every kind of parameter: projected or not, tied, complex, empty, scalar, a convolution, frozen."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(40, 12), nn.Conv2d(8, 12, 3)
        self.up, self.head = nn.Linear(12, 300), nn.Linear(12, 40, bias=False)
        self.head.weight = self.embed.weight
        self.small, self.vector = nn.Linear(12, 4), nn.Parameter(torch.randn(300, 1))
        self.scalar, self.empty = nn.Parameter(torch.ones(())), nn.Parameter(torch.empty(0, 5))
        self.to(dtype)
        self.phase = nn.Parameter(torch.randn(9, 8, dtype=torch.complex64))
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.codes = nn.Parameter(torch.zeros(6, 6, dtype=torch.uint8), requires_grad=False)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("plain", [None, "auto", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("moments", ["auto", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_way_to_store_moments(dtype: torch.dtype, moments: str, plain: str | None) -> None:
    model, targets = Everything(dtype), ["up", "small", "conv"]
    storage = {"moment_dtype": moments, "plain_moment_dtype": plain}
    optimizer = GaLoreAdamW(param_groups(model, targets, rank=5, verbose=False), **storage)
    assert sum(row.projected for row in optimizer.plan()) == 2
    for p in trainable(model).values():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.dtype)
    optimizer.step()
    held = optimizer.state_bytes()
    assert held == optimizer.planned_state_bytes()
    assert held == estimate_state_bytes(model, rank=5, target_modules=targets, **storage)
    with torch.device("meta"):
        empty = Everything(dtype)
    assert held == estimate_state_bytes(empty, rank=5, target_modules=targets, **storage)
    parts = [
        memory.estimate_state_bytes(
            {name: p.shape}, rank=5, dtype=str(p.dtype)[6:], exclude=("embed", "phase"), **storage
        )
        for name, p in trainable(model).items()
    ]
    assert held == sum(parts)


def test_complex_weights_take_the_plain_path() -> None:
    weight = nn.Parameter(torch.randn(9, 8, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    optimizer = GaLoreAdamW([weight, nn.Parameter(torch.zeros(9, 8))], rank=5)
    optimizer.step()
    one = memory.estimate_state_bytes([(9, 8)], rank=5, dtype="complex64")
    assert one == optimizer.state_bytes() == 2 * 72 * 8 + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forced_projections_are_counted(dtype: torch.dtype) -> None:
    model, keys = Model().to(dtype), {"force_projection": True, "proj_type": "right"}
    held = held_after_a_step(model, GaLoreAdamW(param_groups(model, rank=40, verbose=False, **keys)))
    assert held == estimate_state_bytes(model, rank=40, **keys)
    shapes = {name: p.shape for name, p in trainable(model).items()}
    assert held == estimate_state_bytes(shapes, rank=40, dtype=dtype, **keys) > estimate_state_bytes(model, "adamw")


def test_keys_of_what_is_not_projected() -> None:
    model, others = Model().to(torch.bfloat16), {"moment_dtype": "float32", "lr": 0.1}
    keys = {"moment_dtype": "int8"}
    held = held_after_a_step(model, GaLoreAdamW(param_groups(model, rank=5, others=others, verbose=False), **keys))
    assert held == estimate_state_bytes(model, rank=5, others=others, **keys)
    assert held != estimate_state_bytes(model, rank=5, **keys)
    others["plain_moment_dtype"] = "int8"
    assert estimate_state_bytes(model, rank=5, **keys) == estimate_state_bytes(model, rank=5, others=others, **keys)


def test_moments_of_a_device_without_a_kernel_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model().to(torch.bfloat16)
    on_host = estimate_state_bytes(model, rank=5)
    monkeypatch.setattr(devices, "deferred", lambda device: True)
    held = held_after_a_step(model, GaLoreAdamW(param_groups(model, rank=5, verbose=False)))
    assert on_host < estimate_state_bytes(model, rank=5) == held


def test_without_a_rank_the_estimate_takes_the_optimizers_own() -> None:
    for given_ in (nn.Linear(200, 300), {"weight": (300, 200), "bias": (300,)}):
        assert estimate_state_bytes(given_, rank=None) == estimate_state_bytes(given_, rank=128)


def test_the_estimate_has_the_defaults_of_the_optimizer() -> None:
    constructor = inspect.signature(GaLoreAdamW).parameters
    ours = {key: value for key, value in asdict(Keys()).items() if key != "own"}
    assert ours == {key: constructor[key].default if key != "projector" else None for key in ours}
    for name, method in METHODS.items():
        signature = inspect.signature(getattr(optim, method.optimizer.partition(":")[2])).parameters
        assert method.rank == signature["rank"].default, name
        named = (signature["projector"].default,) if "projector" in signature else ()
        assert method.projectors[:1] == named, name
        assert method.moment_dtype == signature["moment_dtype"].default, name
    for function in (estimate_state_bytes, memory.estimate_state_bytes):
        own = inspect.signature(function).parameters
        theirs = {**ours, "moment_dtype": None}
        assert all(own[key].default == value for key, value in theirs.items() if key in own)


def test_the_registry_says_how_a_method_differs_from_galore() -> None:
    galore = {name: p.default for name, p in inspect.signature(GaLoreAdamW).parameters.items()}
    galore = {key: value for key, value in galore.items() if key not in METHODS["galore"].own}  # its own alone
    for name, method in METHODS.items():
        kind = getattr(optim, method.optimizer.partition(":")[2])
        keys = {key: p.default for key, p in inspect.signature(kind).parameters.items() if key != "rank"}
        own = {key: value for key, value in keys.items() if key not in galore or galore[key] != value}
        assert dict(method.own) == own, name
        assert (method.deciding, method.full_rank) == (kind.deciding, kind.full_rank), name
        assert set(method.lacks) == galore.keys() - keys.keys() - {"rank"}, name


@given(
    shapes=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=3), min_size=1, max_size=5),
    rank=st.integers(1, 128),
    proj_type=st.sampled_from(["std", "left", "right"]),
)
def test_bfloat16_models_take_the_published_bytes_and_two_counts(
    shapes: list[list[int]], rank: int, proj_type: str
) -> None:
    bytes_ = memory.estimate_state_bytes(shapes, rank=rank, proj_type=proj_type, dtype="bfloat16")
    fits = [shape for shape in shapes if len(shape) > 1 and rank < min(shape[0], prod(shape[1:]))]
    plain = sum(map(prod, shapes)) - sum(map(prod, fits))
    assert bytes_ == formula_state_bytes(fits, plain, rank=rank, proj_type=proj_type) + 4 * len(shapes) + 4 * len(fits)


def test_the_bytes_are_those_of_the_formula() -> None:
    # 12 x 30 left: basis 12 x 5, moments 5 x 30, all in bfloat16; count, share: 4 bytes each
    shapes = [(12, 30), (9,)]
    assert estimate_state_bytes(shapes, rank=5, dtype=torch.bfloat16) == 2 * 60 + 4 * 150 + 8 + (4 * 9 + 4)
    assert estimate_state_bytes(shapes, rank=5, dtype=torch.bfloat16, moment_dtype="float32") == 120 + 1200 + 8 + 76
    assert formula_state_bytes([(12, 30)], 9, rank=5, basis_bytes=2, moment_bytes=4, other_bytes=4) == 120 + 1200 + 72
    assert formula_state_bytes([(12, 30)], 0, rank=5, basis_bytes=0.5, moment_bytes=1) == 30 + 300


def test_a_leaked_view_would_show() -> None:
    w = nn.Parameter(torch.randn(30, 20))
    optimizer = GaLoreAdamW([w], rank=2)
    w.grad = torch.randn(30, 20)
    optimizer.step()
    honest = optimizer.state_bytes()
    whole = torch.zeros(30, 20)
    optimizer.state[w]["exp_avg"] = whole[:, :2]
    assert optimizer.state_bytes() == honest - 30 * 2 * 4 + 30 * 20 * 4
    optimizer.state[w]["exp_avg_sq"] = whole[:, 2:4]  # the same storage counts once
    assert optimizer.state_bytes() == honest - 2 * 30 * 2 * 4 + 30 * 20 * 4


@pytest.mark.parametrize(
    ("shapes", "keys", "message"),
    [
        (
            [(8, 9)],
            {"rank": True},
            "`rank` must be an int >= 1, a share of .* or None, got True",
        ),
        ([(8, -9)], {}, r"`shapes` must be shapes by name, or shapes alone, of whole numbers >= 0, got \(8, -9\)"),
        ((8, 9), {}, "`shapes` must be shapes by name, or shapes alone, of whole numbers >= 0, got 8"),
        ({"a": "89"}, {}, "`shapes` must be .* got '89'"),
        ([(8, 9)], {"dtype": "int8"}, "`dtype` must be one of float32, float64, bfloat16, .*, got 'int8'"),
        (Model(), {"dtype": torch.int8}, "`dtype` must be one of float32, .*, got 'int8'"),
        ([(8, 9)], {"moment_dtype": "fp8"}, "`moment_dtype` must be one of auto, float32, bfloat16, int8, got 'fp8'"),
        ([(8, 9)], {"plain_moment_dtype": 8}, "`plain_moment_dtype` must be one of None, auto, float32, "),
        ([(8, 9)], {"projector": "qr"}, "`projector` must be one of rsvd, svd, got 'qr'"),
        ([(8, 9)], {"others": {"lr": 1.0}}, "`others` must be left out without a module"),
        (Model(), {"others": {"lr": -1.0}}, "`lr` must be a number >= 0"),
        (Model(), {"target_modules": []}, "^estimate_state_bytes: `target_modules` must name something"),
        (Model(), {"exclude": ["", "a"]}, "^estimate_state_bytes: `exclude` must be a word or several"),
        ({"a": (8, 9)}, {"exclude": 3}, "^estimate_state_bytes: `exclude` must be a word or several"),
        ([(8, 9)], {"optimizer": "adamw", "proj_type": "std"}, "`keys` must be left out for adamw"),
        ([(8, 9)], {"optimizer": "sgd"}, f"`optimizer` must be one of {KNOWN}, got 'sgd'"),
        ([(8, 9)], {"exclude": "x"}, "`exclude` must be left out where shapes have no names"),
        ({"a": (8, 9)}, {"target_modules": ["a"]}, "`target_modules` must be left out without a module"),
        ([(8, 9)], {"rank": 0}, "`rank` must be an int >= 1"),
    ],
)
def test_refusals(shapes: Any, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_state_bytes(shapes, **keys)


def test_unknown_keys_are_refused() -> None:
    for given_ in ([(8, 9)], Model()):
        with pytest.raises(TypeError, match="`tank` must be one of its keys"):
            estimate_state_bytes(given_, tank=4)
    with pytest.raises(TypeError, match="`tank` must be one of its keys"):
        estimate_state_bytes(Model(), others={"tank": 4})


def test_the_formula_refuses_what_is_not_projected() -> None:
    with pytest.raises(ValueError, match="`projected` must be projectable, got \\(4, 9\\): rank 5"):
        formula_state_bytes([(4, 9)], 0, rank=5)
