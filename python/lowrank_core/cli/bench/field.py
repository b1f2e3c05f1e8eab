"""Who takes part."""

from __future__ import annotations

from collections.abc import Collection

from lowrank_core.cli.bench.peers import PEERS, peers, tried_out
from lowrank_core.cli.bench.rivals import GALORE, Rival, ours, torchs


def rivals_of(methods: Collection[str], *, with_peers: bool) -> tuple[list[Rival], dict[str, str]]:
    """torch's optimizers, `methods` and GaLore, their peers; and why other peers do not take part, by name.

    fused AdamW and GaLore, which the others are compared with, always do.
    """
    chosen = dict.fromkeys((GALORE, *methods))
    found, absent = peers(chosen) if with_peers else ([], {})
    return [*torchs(chosen), *ours(chosen), *found], absent


def find_rival(name: str, method: str | None) -> Rival:
    """The one of that name, of `method` or a peer of it."""
    if peer := next((peer for peer in PEERS if peer.name == name), None):
        tried = tried_out(peer)
        if isinstance(tried, Rival):
            return tried
        raise LookupError(f"{name}: {tried}")
    methods = [] if method is None else [method]
    return next(rival for rival in [*torchs(methods), *ours(methods)] if rival.name == name)
