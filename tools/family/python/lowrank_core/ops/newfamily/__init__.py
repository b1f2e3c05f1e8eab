"""What the family is."""

from lowrank_core.ops.newfamily.newfamily import newfamily

__all__ = ["newfamily"]
