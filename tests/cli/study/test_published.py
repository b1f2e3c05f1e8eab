"""Claims beside our figures, and processors: what the page says of faked runs."""

from __future__ import annotations

import json
import math

import pytest
from lowrank_core.cli.study import figures, machines, published
from lowrank_core.cli.study.contenders import CONTENDERS
from lowrank_core.cli.study.figures import NEITHER, UNKNOWN
from lowrank_core.cli.study.page import text_of
from lowrank_core.cli.study.published import AS, CLAIMS, NOT_AS, Claim, verdict
from study_cases import fill, tiny_study

SEEDS = (1, 2, 3)
NOISE = {1: 0.01, 2: 0.0, 3: -0.01}
SAME = Claim("galore", published.LOSS, "nowhere")


def claim_of(*perplexities: tuple[float, float]) -> Claim:
    return Claim("galore", published.LOSS, "nowhere", {str(place): pair for place, pair in enumerate(perplexities)})


@pytest.fixture
def study(tmp_path):
    return tiny_study(tmp_path, seeds=SEEDS)


def losses(gap):
    """Galore ends `gap` above AdamW's 2 nats; the noise is its own."""
    return lambda trial: 2.0 + (trial.optimizer == "galore") * (gap + NOISE.get(trial.seed, 0.0))


def cells(study, figure, seconds=None):
    """What the table says of one figure of galore."""
    rows = [line.split(" | ") for line in published.published(study, seconds or {}).splitlines()]
    return next(row for row in rows if row[0] == "| galore" and row[1].startswith(figure))


def test_claims_are_of_contenders_and_have_a_source():
    names = {row.name for row in CONTENDERS}
    assert {claim.method for claim in CLAIMS} | {claim.peer for claim in CLAIMS} <= names
    assert all(claim.source for claim in CLAIMS)
    assert all((claim.ratio is None) == (claim.figure == published.LOSS) for claim in CLAIMS)


# Typed a second time from the papers, so that a slip of the pen shows.
LOSSES = {
    "galore": "60M 34.88 for 34.06: +0.7%; 130M 25.36 for 25.08: +0.3%; 350M 18.95 for 18.80: +0.3%; "
    "1B 15.64 for 15.56: +0.2%",
    "coap": "the same",
    "apollo": "60M 31.55 for 34.06: -2.2%; 130M 22.94 for 25.08: -2.8%; 350M 16.85 for 18.80: -3.7%; "
    "1B 14.20 for 15.56: -3.3%",
    "adarankgrad": "60M 34.24 for 34.06: +0.1%; 130M 25.22 for 25.08: +0.2%; 350M 18.91 for 18.80: +0.2%; "
    "1B 14.71 for 15.56: -2.0%",
    "dct": "800M 13.69 for 11.73: +6.3%",
    "qgalore": "60M 34.88 for 34.06: +0.7%; 130M 25.53 for 25.08: +0.6%; 350M 19.79 for 18.80: +1.7%; "
    "1B 16.25 for 15.56: +1.6%",
    "fira": "60M 31.06 for 34.06: -2.6%; 130M 22.73 for 25.08: -3.1%; 350M 16.85 for 18.80: -3.7%; "
    "1B 14.31 for 15.56: -3.1%",
    "ldadam": "800M 13.91 for 11.73: +6.9%",
    "trion": "350M 15.30 for 14.99: +0.8%; 800M 12.22 for 12.05: +0.6%; 1.3B 11.28 for 11.13: +0.6%",
}
STATES = {"galore": "0.34", "coap": "0.39"}
TIMES = {
    "galore": "1.04", "coap": "1.02", "lisa": "0.34", "dct": "1.05", "qgalore": "1.17", "fira": "1.06", "ldadam": "1.32"
}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "said"), [(published.LOSS, LOSSES), (published.STATE, STATES), (published.TIME, TIMES)]
)
def test_the_numbers_are_those_of_the_papers(figure, said):
    assert {claim.method: claim.said for claim in CLAIMS if claim.figure == figure} == said
    assert {claim.method: claim.peer for claim in CLAIMS if claim.peer != "adamw"} == {
        "qgalore": "galore",
        "trion": "muon",
    }


def test_a_claim_is_told_as_it_is_and_relative_to_the_peer():
    claim = claim_of((math.e**2.2, math.e**2), (math.e**1.9, math.e**2))
    assert claim.said.startswith("0 9.03 for 7.39: +10.0%; 1 6.69 for 7.39: -5.0%")
    assert SAME.said == "the same" and Claim("galore", published.TIME, "nowhere", ratio=1.234).said == "1.23"


def test_what_is_not_measured_says_so(study):
    assert cells(study, "loss")[3:6] == [UNKNOWN] * 3 and cells(study, "state")[3:5] == [UNKNOWN] * 2
    assert "| coap |" not in published.published(study, {}), "the study has no such contender"


def test_ours_are_relative_to_adamws_mean(study):
    fill(study, losses(0.5))
    for cell in cells(study, "loss")[3:5]:
        mean, _, interval = cell.partition(" (")
        low, high = (float(part.rstrip("%)")) for part in interval.split(" to "))
        # Of three seeds that differ by 0.01: Student's 4.3027 times 0.01 / sqrt(3), over 2 nats, in per cent.
        assert mean == "+25.0%" and (low, high) == (round(25 - 1.2421, 1), round(25 + 1.2421, 1))
    assert cells(study, "state")[3:5] == ["1.00"] * 2
    timed = {"small": {"galore": {"seconds_per_step": 3.0}, "adamw": {"seconds_per_step": 2.0}}}
    assert cells(study, "time", timed)[3:5] == ["1.50", UNKNOWN]


@pytest.mark.parametrize(
    ("gap", "seen"),  # where less, more and the same was claimed
    [(0.5, (NOT_AS, AS, NOT_AS)), (-0.5, (AS, NOT_AS, AS)), (0.0, (NEITHER, NEITHER, AS))],
)
def test_a_claim_that_is_not_reproduced_is_said_to_be(study, gap, seen):
    fill(study, losses(gap))
    pairs = [figures.of(study, study.row("galore"), size) for size in (study.small, study.large)]
    less, more = claim_of((2.0, 3.0), (3.1, 3.0)), claim_of((3.0, 2.0))
    assert tuple(verdict(claim, *pairs) for claim in (less, more, SAME)) == seen
    assert verdict(less, None, pairs[1]) == UNKNOWN


def test_a_divergence_is_said(study):
    fill(study, lambda trial: None if trial.optimizer == "galore" and trial.seed == 2 else 2.0)
    assert cells(study, "loss")[3] == "diverged on 1 of 3 seeds"


def test_every_processor_is_named_and_pairs_of_two_kinds_are_counted(study):
    fill(study, losses(0.0))
    pairs = 2 * 2 * len(SEEDS)  # of galore and "adamw, one rate", at both sizes
    assert machines.pairs(study) == (pairs, 0)
    trial = study.runs(study.row("galore"), study.small)[0]
    record = json.loads(study.store.path(trial).read_text())
    here, runs = record["machine"]["cpu"], len(list(study.store.records()))
    record["machine"]["cpu"] = "Another"
    study.store.write(trial, record)
    assert machines.pairs(study) == (pairs, 1)
    assert machines.kinds(study) == f"{runs - 1} on {here}, 1 on Another"
    text = " ".join(text_of(study, {}).split())
    assert f"{runs - 1} on {here}, 1 on Another." in text
    assert f"Of {pairs} pairs with AdamW's runs 1 are of two kinds." in text and "no exact pair" in text
