"""Memory before a run: bytes of optimizer state from shapes. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple

from lowrank_core.checks import is_count, require, require_choice, words_of
from lowrank_core.memory.geometry import PROJ_TYPES, RANKS, Geometry, Rank, is_rank, place_by
from lowrank_core.memory.lisa import ACTIVE, lisa_bytes
from lowrank_core.memory.method import Entry
from lowrank_core.memory.methods import FACADES, METHODS
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.memory.stacks import Stacked, stack_sizes
from lowrank_core.memory.storage import (
    ITEM_SIZES,
    MOMENT_DTYPES,
    RULES,
    STORAGES,
    adam_fields,
    basis_storage,
    layout_bytes,
    moment_storage,
    real_view,
    refresh_fields,
    state_layout,
    stored,
    subspace_fields,
)

OP = "estimate_state_bytes"
OPTIMIZERS = ("adamw", *METHODS, *FACADES)
_STEP_BYTES = 4  # torch's count of steps is a float32
_WEIGHTS = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128", "complex32")

Shape = Iterable[int]
Shapes = Mapping[str, Shape] | Iterable[Shape]


class Weight(NamedTuple):
    """The properties of one trainable parameter that memory depends on."""

    shape: tuple[int, ...]
    dtype: str
    host: bool = True  # False: on an accelerator
    int8: bool = False  # stored in 8-bit codes, as by `Int8Linear`; of its `dtype` is what reads it, and its gradient
    stack: int = 1  # how many matrices there are in the parameter that it is one of


Counted = tuple[str, Weight, int]  # a name, and how many weights there are that are alike


@dataclass(frozen=True)
class Keys:
    """The keys of a group that decide its bytes, with the defaults that every method has.

    Raises:
      ValueError: a value is out of its range.
    """

    rank: Rank | None = 128
    proj_type: str = "std"
    force_projection: bool = False
    moment_dtype: str = "auto"
    plain_moment_dtype: str | None = None
    projector: str | None = None
    own: Mapping[str, Any] | None = None  # those that one method alone has

    def __post_init__(self) -> None:
        require(self.rank is None or is_rank(self.rank), OP, "rank", RANKS, self.rank)
        require_choice(OP, "proj_type", self.proj_type, PROJ_TYPES)
        force = self.force_projection
        require(isinstance(force, bool), OP, "force_projection", "be True or False", force)
        require_choice(OP, "moment_dtype", self.moment_dtype, MOMENT_DTYPES)
        require_choice(OP, "plain_moment_dtype", self.plain_moment_dtype, (None, *MOMENT_DTYPES))

    def plain(self, others: Mapping[str, Any] | None) -> Keys:
        """The keys of weights that are not projected: these without a rank, and with those of `others` that decide
        bytes."""
        own = {key: value for key, value in (others or {}).items() if key in DECIDING}
        return replace(self, **{**own, "rank": None})

    def all(self) -> dict[str, Any]:
        """Every key by its name, those of one method among the others."""
        found = asdict(self)
        return {**found, **(found.pop("own") or {})}


DECIDING = frozenset(entry.name for entry in fields(Keys)) - {"rank", "own"}


def estimate_state_bytes(
    shapes: Shapes,
    optimizer: str = "galore",
    *,
    rank: Rank | None = 128,
    dtype: str = "float32",
    exclude: str | Iterable[str] | None = None,
    proj_type: str = Keys.proj_type,
    force_projection: bool = Keys.force_projection,
    moment_dtype: str | None = None,
    plain_moment_dtype: str | None = Keys.plain_moment_dtype,
    projector: str | None = Keys.projector,
    counts: Mapping[str, int] | None = None,
    stacked: Stacked = False,
    **own: Any,
) -> int:
    """Bytes of state that `optimizer` holds once every parameter has taken a step, exact to the byte.

    Equals `optimizer.state_bytes()` of a run on the CPU, or what torch.optim.AdamW holds ("adamw").
    `lowrank_core.optim.estimate_state_bytes` takes modules too, and needs torch; this needs none.

    Args:
      shapes: by name, where a name with a word of `exclude` means plain AdamW; or shapes alone, of which none is
        excluded.
      optimizer: "adamw", one of `METHODS`, or "lisa": AdamW's of the `active` (2) largest layers of the longest stack.
      rank: of the projection, for optimizers that have one; None means their own default.
      dtype: name of the weights' dtype, such as "bfloat16".
      exclude: a word or several; None: "embed" and "lm_head".
      proj_type, force_projection, moment_dtype, plain_moment_dtype, projector: as given to the optimizer; None of
        the third and the last means its own default.
      counts: how many weights there are of a name; one of those that it leaves out.
      stacked: which shapes [E, m, n] are stacks of E matrices, as in a group with that key, of those that are not
        excluded: True, all of them; False, none; or a word or several in their names.
      own: the keys of `optimizer` alone that decide bytes.

    Raises:
      TypeError: a key that decides nothing here.
      ValueError: an unknown name, a value out of its range, or `exclude` for shapes without names.

    Example:
      >>> from lowrank_core.memory import estimate_state_bytes
      >>> shapes = {"embed.weight": (32000, 4096), "up.weight": (11008, 4096)}
      >>> adamw = estimate_state_bytes(shapes, "adamw", dtype="bfloat16")
      >>> adamw, estimate_state_bytes(shapes, rank=128, dtype="bfloat16", plain_moment_dtype="int8")
      (704643080, 272924684)
    """
    require_optimizer(optimizer)
    require_dtype(dtype)
    named = isinstance(shapes, Mapping)
    require(named or exclude is None, OP, "exclude", "be left out where shapes have no names", exclude)
    words = words_of(OP, "exclude", EXCLUDED if exclude is None else exclude) if named else ()
    weights = [(name, Weight(shape, dtype), (counts or {}).get(name, 1)) for name, shape in _shapes(shapes)]
    if optimizer == "adamw":
        return sum(n * adamw_bytes(weight) for _, weight, n in weights)
    if optimizer in FACADES:
        return facade_bytes(weights, own)
    keys = keys_of(
        optimizer,
        rank,
        proj_type=proj_type,
        force_projection=force_projection,
        moment_dtype=moment_dtype,
        plain_moment_dtype=plain_moment_dtype,
        projector=projector,
        **own,
    )
    plain = keys.plain(None)
    given = [plain if any(word in name for word in words) else keys for name, _, _ in weights]
    stacks = stack_sizes(OP, {name: weight.shape for name, weight, _ in weights}, stacked)
    taken = [matrices(one, stacks.get(one[0])) if own is keys else one for one, own in zip(weights, given, strict=True)]
    return all_bytes(optimizer, taken, given)


def matrices(weight: Counted, count: int | None) -> Counted:
    """The matrices in a stack of `count`; None: `weight` is no stack."""
    name, stack, number = weight
    return weight if count is None else (name, stack._replace(shape=stack.shape[1:], stack=count), number * count)


def require_optimizer(optimizer: str) -> None:
    """Raises unless the memory of `optimizer` is known."""
    require_choice(OP, "optimizer", optimizer, OPTIMIZERS)


def require_dtype(dtype: str) -> None:
    """Raises unless `dtype` names a dtype that can be trained."""
    require_choice(OP, "dtype", dtype, _WEIGHTS)


def keys_of(optimizer: str, rank: Rank | None, **keys: Any) -> Keys:
    """The keys of `optimizer`, with its own rank if `rank` is None, and its own defaults.

    Raises:
      TypeError: a key decides nothing for it.
      ValueError: a value is out of its range.
    """
    method = METHODS[optimizer]
    if unknown := [key for key in keys if key not in DECIDING and key not in method.deciding]:
        known = ", ".join(sorted((*DECIDING, *method.deciding)))
        raise TypeError(f"{OP}: `{unknown[0]}` must be a key that decides bytes of {optimizer}: {known}")
    own = {key: keys.pop(key, method.own[key]) for key in method.deciding}
    if "rule" in own:
        require_choice(OP, "rule", own["rule"], RULES)
    if keys.get("moment_dtype") is None:
        keys["moment_dtype"] = method.moment_dtype
    found = Keys(method.rank if rank is None else rank, own=own, **keys)
    require_choice(OP, "projector", found.projector, (None, *method.projectors))
    require_choice(OP, "proj_type", found.proj_type, method.proj_types)
    return found


def adamw_bytes(weight: Weight) -> int:
    """Bytes that torch.optim.AdamW holds: two moments of the weight's dtype, and a count."""
    return 2 * prod(weight.shape) * ITEM_SIZES[weight.dtype] + _STEP_BYTES


def facade_bytes(weights: Sequence[Counted], own: Mapping[str, Any]) -> int:
    """Bytes that LISA over torch.optim.AdamW holds within a period; `own` may have `active`."""
    if unknown := [key for key in own if key != "active"]:
        raise TypeError(f"{OP}: `{unknown[0]}` must be a key that decides bytes of lisa: active")
    states = [(name, adamw_bytes(weight), n) for name, weight, n in weights]
    return lisa_bytes(OP, states, own.get("active", ACTIVE))


def all_bytes(optimizer: str, weights: Sequence[Counted], keys: Sequence[Keys]) -> int:
    """Bytes that `optimizer`, one of `METHODS`, holds for all of its `weights`: name, weight, how many there are; with
    the `keys` of each."""
    method = METHODS[optimizer]
    if method.settle is None:
        return sum(
            n * projecting_bytes(optimizer, weight, own) for (_, weight, n), own in zip(weights, keys, strict=True)
        )
    entries = [
        Entry(name, weight.shape, n, own.all(), place_of(optimizer, weight, own) is not None)
        for (name, weight, n), own in zip(weights, keys, strict=True)
    ]
    total = 0
    for (_, weight, _), own, settled in zip(weights, keys, method.settle(entries), strict=True):
        for more, n in settled:
            total += n * projecting_bytes(optimizer, weight, replace(own, own={**(own.own or {}), **more}))
    return total


def projecting_bytes(optimizer: str, weight: Weight, keys: Keys) -> int:
    """Bytes that `optimizer`, one of `METHODS`, holds."""
    shape, dtype = real_view(weight.shape, weight.dtype)
    method, asked = METHODS[optimizer], keys.all()
    where = place_of(optimizer, weight, keys)
    key = keys.moment_dtype if where else keys.plain_moment_dtype or keys.moment_dtype
    moment, basis = STORAGES[moment_storage(key, dtype, weight.host)], STORAGES[basis_storage(dtype)]
    if where is None:
        return layout_bytes(state_layout(stored(adam_fields(shape), moment, dtype)))
    kept = method.kept(where, asked)
    moments, bases = stored(kept.moments, moment, dtype), stored(kept.bases, basis, dtype)
    fed_back = STORAGES[moment_storage(asked.get("error_feedback_dtype", "auto"), dtype, weight.host)]
    feedback = stored(kept.feedback or {}, fed_back, dtype)
    return layout_bytes(state_layout(subspace_fields(where), refresh_fields(), bases, moments, feedback))


def place_of(optimizer: str, weight: Weight, keys: Keys) -> Geometry | None:
    """Where `optimizer`, one of `METHODS`, projects a weight; complex ones take the plain path."""
    method = METHODS[optimizer]
    if weight.dtype.startswith("complex"):
        return None
    if method.place is not None:
        return method.place(weight.shape, keys.all())[0]
    return place_by(weight.shape, keys.all(), method.rank_of, method.full_rank)[0]


def _shapes(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes; a shape without a name gets its position. Raises ValueError for anything that is not a
    shape."""
    rule = "be shapes by name, or shapes alone, of whole numbers >= 0"
    require(isinstance(shapes, Iterable) and not isinstance(shapes, str), OP, "shapes", rule, shapes)
    pairs = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
    found = []
    for name, shape in pairs:
        sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else (None,)
        require(all(is_count(size, 0) for size in sizes), OP, "shapes", rule, shape)
        found.append((str(name), tuple(map(int, sizes))))
    return found
