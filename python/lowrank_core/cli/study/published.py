"""What was published of the methods, and what this comparison says in the same terms.

A perplexity is that of a token, our losses are those of a byte. What does not depend on that unit is the loss relative
to the peer's: ln(perplexity) / ln(the peer's) - 1 there, the difference of losses over the peer's here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from lowrank_core.cli.study import figures
from lowrank_core.cli.study.contenders import Contender
from lowrank_core.cli.study.figures import UNKNOWN, Figures
from lowrank_core.cli.study.intervals import paired
from lowrank_core.cli.study.sizes import Size
from lowrank_core.cli.study.stages import PEERS, Study
from lowrank_core.cli.study.tables import Seconds, markdown

LOSS, STATE, TIME = "loss", "state", "time of a step"
AS, NOT_AS = "as published", "not reproduced"

ADAM = {"60M": 34.06, "130M": 25.08, "350M": 18.80, "1B": 15.56}  # AdamW's of the tables on C4 below
_GALORE = "Zhao et al. 2024 (arXiv:2403.03507), table 2: C4"
_QGALORE = "Zhang et al. 2024 (arXiv:2407.08296): C4; AdamW as in GaLore's table 2"
_FIRA = "Chen et al. 2024 (arXiv:2410.01623): C4; AdamW as in GaLore's table 2"
_APOLLO = "Zhu et al. 2024 (arXiv:2412.05270): C4"
_ADARANKGRAD = "Refael et al. 2024 (arXiv:2410.17881), as the Lotus paper quotes it: C4; AdamW as in GaLore's table 2"
_DCT = "Modoranu et al. 2025 (arXiv:2505.17967), as quoted by others: C4, Llama of 800M, 100 tokens a parameter"
_TRION = "Modoranu et al. 2025 (arXiv:2505.17967), as quoted by others: C4, 20 tokens a parameter"
_COAP = "Xiao et al. 2024 (arXiv:2412.00071), abstract: Llama of 1B"
_LISA = "Pan et al. 2024 (arXiv:2403.17919), abstract: fine-tuning"


@dataclass(frozen=True)
class Claim:
    """One figure of `method` beside that of `peer`: perplexities of both by model, or a ratio of bytes or seconds."""

    method: str
    figure: str
    source: str
    perplexities: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ratio: float | None = None
    peer: str = PEERS[0]

    @property
    def said(self) -> str:
        """The claim in the terms of the table."""
        if self.ratio is not None:
            return f"{self.ratio:.2f}"
        pairs = self.perplexities.items()
        parts = [f"{name} {mine:.2f} for {peer:.2f}: {self.shares[name]:+.1%}" for name, (mine, peer) in pairs]
        return "; ".join(parts) if parts else "the same"

    @property
    def shares(self) -> dict[str, float]:
        """The loss relative to the peer's, less one, by model."""
        return {name: math.log(mine) / math.log(theirs) - 1 for name, (mine, theirs) in self.perplexities.items()}


def _of_c4(method: str, source: str, *perplexities: float) -> Claim:
    pairs = zip(ADAM, perplexities, strict=True)
    return Claim(method, LOSS, source, {model: (mine, ADAM[model]) for model, mine in pairs})


CLAIMS = (
    _of_c4("galore", _GALORE, 34.88, 25.36, 18.95, 15.64),
    Claim("galore", STATE, "the same paper, table 6: 1B at rank d/4", ratio=1.78 / 5.20),
    Claim("galore", TIME, "Chen et al. 2024 (arXiv:2410.01623): throughput at 1B", ratio=1 / 0.959),
    Claim("coap", LOSS, _COAP),
    Claim("coap", STATE, _COAP, ratio=1 - 0.61),
    Claim("coap", TIME, _COAP, ratio=1.02),
    _of_c4("apollo", _APOLLO, 31.55, 22.94, 16.85, 14.20),
    _of_c4("adarankgrad", _ADARANKGRAD, 34.24, 25.22, 18.91, 14.71),
    Claim("lisa", TIME, _LISA, ratio=1 / 2.9),
    Claim("dct", LOSS, _DCT, {"800M": (13.69, 11.73)}),
    Claim("dct", TIME, _DCT, ratio=(24 + 15 + 17 / 60) / (24 + 13 + 22 / 60)),
    _of_c4("qgalore", _QGALORE, 34.88, 25.53, 19.79, 16.25),
    Claim("qgalore", TIME, "the same paper: throughput against GaLore's", ratio=1 / (1 - 0.1464), peer="galore"),
    _of_c4("fira", _FIRA, 31.06, 22.73, 16.85, 14.31),
    Claim("fira", TIME, "the same paper: throughput at 1B", ratio=1 / 0.942),
    Claim("ldadam", LOSS, _DCT, {"800M": (13.91, 11.73)}),
    Claim("ldadam", TIME, _DCT, ratio=(2 * 24 + 1 + 24 / 60) / (24 + 13 + 22 / 60)),
    Claim("trion", LOSS, _TRION, {"350M": (15.30, 14.99), "800M": (12.22, 12.05), "1.3B": (11.28, 11.13)}, peer="muon"),
)  # fmt: skip


def published(study: Study, seconds: Seconds) -> str:
    """The claims about the study's contenders, one line each."""
    head = ["optimizer", "figure, of whose", "published", "here, small", "here, large", "seen here", "published where"]
    names = {row.name for row in study.contenders}
    rows = [_line(study, claim, seconds) for claim in CLAIMS if {claim.method, claim.peer} <= names]
    return markdown(head, rows)


def without(study: Study) -> list[str]:
    """The methods of the study about which there is no claim here."""
    claimed = {claim.method for claim in CLAIMS}
    return [row.name for row in study.contenders if row.foreign is None and row.name not in (*PEERS, *claimed)]


def _line(study: Study, claim: Claim, seconds: Seconds) -> list[str]:
    mine, peer = study.row(claim.method), study.row(claim.peer)
    sizes = (study.small, study.large)
    seen = ""
    if claim.figure == LOSS:
        pairs = [(figures.of(study, mine, size), figures.of(study, peer, size)) for size in sizes]
        here, seen = [_relative(*pair) for pair in pairs], verdict(claim, *map(_beside, pairs))
    elif claim.figure == STATE:
        here = [_ratio(*(figures.state_bytes(study, row, size) for row in (mine, peer))) for size in sizes]
    else:
        here = [_ratio(*(_seconds_of(seconds, row, size) for row in (mine, peer))) for size in sizes]
    return [claim.method, f"{claim.figure}, of {claim.peer}", claim.said, *here, seen, claim.source]


def verdict(claim: Claim, small: Figures | None, large: Figures | None) -> str:
    """Whether both sizes show the sign of what is claimed in the mean; the same loss is not, where both show more."""
    found = figures.verdict(small, large)
    sign = fmean(claim.shares.values()) if claim.shares else 0.0
    if found in (UNKNOWN, figures.NEITHER):
        return AS if found == figures.NEITHER and sign == 0 else found
    return AS if (found == figures.WORSE) == (sign > 0) else NOT_AS


def _beside(pair: tuple[Figures | None, Figures | None]) -> Figures | None:
    """The first one's figures, with the second one's losses for the peer's."""
    mine, peer = pair
    if mine is None or peer is None:
        return None
    return Figures(mine.losses, peer.losses, math.inf, mine.state_bytes, mine.peak_rss_bytes, mine.ratio)


def _relative(mine: Figures | None, peer: Figures | None) -> str:
    if mine is None or peer is None:
        return UNKNOWN
    if mine.diverged or peer.diverged:
        return f"diverged on {max(mine.diverged, peer.diverged)} of {len(mine.losses)} seeds"
    base, found = figures.mean(peer.losses), paired(mine.losses, peer.losses)
    return f"{found.mean / base:+.1%} ({found.low / base:+.1%} to {found.high / base:+.1%})"


def _ratio(mine: float | None, peer: float | None) -> str:
    return f"{mine / peer:.2f}" if mine and peer else UNKNOWN


def _seconds_of(seconds: Seconds, row: Contender, size: Size) -> float | None:
    return seconds.get(size.name, {}).get(row.name, {}).get("seconds_per_step")
