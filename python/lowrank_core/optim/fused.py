"""The table from a combination of parts to a kernel that steps a whole bucket at once.

It has no entry yet: the kernels come with the family `subspace_step`. An entry has the signature of
`compose`, takes the same lists, and must do what `compose` does with them, whose result is its test.
"""

from __future__ import annotations

from lowrank_core.optim.compose import compose
from lowrank_core.optim.parts import Bucket, Step

Key = tuple[str, type, type, type, type, type]  # device, space, residual, rule, moment codec, basis codec

FUSED: dict[Key, Step] = {}


def key_of(bucket: Bucket) -> Key:
    """The combination that `bucket` is stepped by."""
    parts = bucket.parts
    made_of = (bucket.space, bucket.residual, parts.rule, parts.moment_codec, parts.basis_codec)
    space, residual, rule, moments, basis = (type(part) for part in made_of)
    return (bucket.slots[0].param.device.type, space, residual, rule, moments, basis)


def step_of(bucket: Bucket) -> Step:
    """The fused kernel for `bucket`, or the composition where there is none."""
    return FUSED.get(key_of(bucket), compose)
