"""`estimate`: what it prints is what training holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.memory import held_bytes
from lowrank_core.memory.methods import FACADES, METHODS


def numbers(outcome) -> dict:
    assert outcome.code == 0
    return json.loads(outcome.out)


WHOLE = ("scale", "sinkgd")


def test_default_is_the_decoder_of_train(cli):
    result = numbers(cli("estimate", "--optimizer", "galore", "--json"))
    assert result["rank"] == 64 and 3e6 < result["parameters"] < 4e6
    adamw, galore = result["bytes"]
    assert adamw["weights"] == adamw["gradients"] == 4 * result["parameters"]
    assert galore["state"] <= 0.40 * adamw["state"]
    assert galore["total"] == galore["weights"] + galore["gradients"] + galore["state"]


@pytest.mark.parametrize(
    ("precision", "moments"),
    [
        ("fp32", []),
        ("bf16", []),
        ("bf16", ["--moment-dtype", "int8", "--plain-moment-dtype", "float32"]),
        ("fp32", ["--moment-dtype", "bfloat16", "--proj-type", "full"]),
    ],
)
def test_equals_what_a_run_holds(tiny, cli, tmp_path, precision, moments):
    run = cli(*tiny, "--steps", 4, "--compare", "adamw", "--precision", precision, *moments, "--out", tmp_path)
    assert run.code == 0
    held = {row["optimizer"]: row["state_bytes"] for row in json.loads((tmp_path / "summary.json").read_text())["runs"]}
    size = ["--dim", 16, "--layers", 1, "--ffn", 24, "--rank", 4, "--dtype", precision, *moments]
    options = ["--optimizer", "galore", *size, "--json"]
    estimated = {row["optimizer"]: row["state"] for row in numbers(cli("estimate", *options))["bytes"]}
    assert held == estimated


@pytest.mark.parametrize(
    ("preset", "millions"), [("60m", 58.07), ("130m", 134.11), ("350m", 367.97), ("1b", 1339.08), ("7b", 6738.42)]
)
def test_presets_have_the_published_sizes(cli, preset, millions):
    result = numbers(cli("estimate", "--preset", preset, "--json"))
    assert round(result["parameters"] / 1e6, 2) == pytest.approx(millions)


def test_any_count_of_matrices_is_counted(cli):
    """Linear in the number of layers, and in no time: nothing is listed."""
    one, two, many = (numbers(cli("estimate", "--layers", n, "--json")) for n in (1, 2, 2**62))
    for row in (0, 1):
        for key in ("weights", "gradients", "state", "total"):
            a, b, c = (result["bytes"][row][key] for result in (one, two, many))
            assert c == a + (2**62 - 1) * (b - a) > 2**64
    shapes = [numbers(cli("estimate", "--shape", f"64x32*{n}", "--json")) for n in (1, 2**62)]
    assert shapes[1]["bytes"][1]["state"] == 2**62 * shapes[0]["bytes"][1]["state"]


def test_no_size_overflows(cli):
    galore = numbers(cli("estimate", "--shape", f"{2**62}x{2**63 - 1}", "--rank", 2, "--json"))["bytes"][1]
    assert galore["weights"] == 4 * 2**62 * (2**63 - 1)
    assert galore["state"] == 4 * (2 * 2**62 + 2 * 2 * (2**63 - 1)) + 8
    assert numbers(cli("estimate", "--dim", 2**62, "--json"))["parameters"] > 2**124


def test_a_run_that_does_not_fit_is_counted_with_its_moments():
    of = TrainConfig(dim=64, ffn=96, layers=1, rank=8, proj_type="std", precision="bf16")
    small = held_bytes(replace(of, moment_dtype="int8", plain_moment_dtype="int8"), "galore")
    assert small < held_bytes(of, "galore") < held_bytes(replace(of, moment_dtype="float32"), "galore")


def test_explicit_shapes(cli):
    result = numbers(cli("estimate", "--shape", "64x32*3", "--shape", "16x16", "--rank", 8, "--json"))
    assert result["parameters"] == 3 * 64 * 32 + 16 * 16
    only_adamw = numbers(cli("estimate", "--shape", "64x32", "--optimizer", "adamw", "--json"))
    assert [row["optimizer"] for row in only_adamw["bytes"]] == ["adamw"] and only_adamw["rank"] is None


@pytest.mark.parametrize(
    ("options", "kept"),  # by a weight of 64 x 32 at rank 8: numbers of its own width, and bytes besides
    [
        (["galore"], (32 * 8 + 2 * 64 * 8, 4 + 4)),  # the count of steps, the share captured
        (["fira"], (32 * 8 + 2 * 64 * 8, 4 + 4 + 4)),  # and the norm of the limiter
        (["apollo"], (2 * 64 * 8, 4 + 4)),
        (["apollo", "--projector", "svd"], (32 * 8 + 2 * 64 * 8, 4 + 4 + 4)),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_method(cli, options, kept, dtype):
    size = ["--shape", "64x32*3", "--rank", 8, "--dtype", dtype]
    adamw, ours = numbers(cli("estimate", *size, "--optimizer", *options, "--json"))["bytes"]
    width, (elements, beside) = {"fp32": 4, "bf16": 2}[dtype], kept
    assert ours["optimizer"] == options[0] and ours["state"] == 3 * (width * elements + beside)
    assert adamw["state"] == 3 * (2 * width * 64 * 32 + 4)
    table = cli("estimate", *size, "--optimizer", *options).out
    assert f"Moments of {options[0]}: auto." in table


def test_apollo_mini(cli):
    ours = numbers(cli("estimate", "--optimizer", "apollo", "--rank", 1, "--json"))
    small = numbers(cli("estimate", "--optimizer", "apollo", "--json"))
    assert small["rank"] == 64 and ours["bytes"][1]["state"] < small["bytes"][1]["state"] < ours["bytes"][0]["state"]


def test_frugal(cli):
    """Of blocks the largest ones count that may be at work together: a quarter of eight, or 0.5 of eight."""
    shapes = ["estimate", "--shape", "64x32*6", "--shape", "16x16*2", "--optimizer", "frugal", "--json"]
    lines = numbers(cli(*shapes, "--rank", 8))["bytes"][1]["state"]
    assert lines == 6 * (2 * 4 * 64 * 8) + 2 * (2 * 4 * 16 * 8) + 8 * (4 + 4 + 8 * 8)  # and indices, share, count
    for density, active in ((0.25, 2), (0.5, 4)):
        held = numbers(cli(*shapes, "--subspace", "block", "--density", density))["bytes"][1]["state"]
        assert held == active * 2 * 4 * 64 * 32 + 8 * 4
    many = ["estimate", "--shape", f"64x32*{2**62}", "--optimizer", "frugal", "--json", "--subspace", "block"]
    assert numbers(cli(*many, "--density", 0.5))["bytes"][1]["state"] == 2**61 * 2 * 4 * 64 * 32 + 4 * 2**62


def test_lisa(cli):
    """Two layers at a time, or `--active`, of the decoder or of matrices; and what is outside of the stack."""
    options = ["estimate", "--optimizer", "lisa", "--json"]
    states = [numbers(cli(*options, "--layers", n))["bytes"] for n in (2, 3, 2**62)]
    assert [rows[1]["state"] for rows in states] == [states[0][0]["state"]] * 3
    layer = numbers(cli(*options, "--layers", 3))["bytes"][0]["state"] - states[0][0]["state"]
    one = numbers(cli(*options, "--layers", 9, "--active", 1))["bytes"][1]["state"]
    assert one == states[0][0]["state"] - layer
    matrices = numbers(cli(*options, "--shape", "8x6*5", "--shape", "4x4"))["bytes"][1]["state"]
    assert matrices == 2 * (2 * 4 * 48 + 4) + 2 * 4 * 16 + 4


def test_scale_counts_one_last_matrix(cli):
    """With --shape the last one; the decoder's head has AdamW's moments, as in a run."""
    shapes = ["--shape", f"8x6*{2**62}", "--shape", "4x5*3"]
    for what, of_last in ((shapes, 4 * 20), ([], 0)):
        scale, sinkgd = (
            numbers(cli("estimate", *what, "--optimizer", name, "--json"))["bytes"][1]["state"] for name in WHOLE
        )
        assert scale == sinkgd + of_last
        assert not what or sinkgd == 4 * (2**62 + 3)


def test_all_is_what_each_is(cli):
    """Without `--optimizer` the table has every row that naming it gives, and options of one method act on that."""
    size = ["estimate", "--preset", "60m", "--dtype", "bf16", "--json"]
    options = ["--density", 0.5, "--active", 3, "--moment-dtype", "int8", "--int8-weights"]
    own = {"frugal": ["--density", 0.5], "lisa": ["--active", 3]}
    everything = numbers(cli(*size, *options))
    assert [row["optimizer"] for row in everything["bytes"]] == ["adamw", *METHODS, *FACADES]
    for row in everything["bytes"][1:]:
        name = row["optimizer"]
        shared = [] if name in FACADES else ["--moment-dtype", "int8", "--int8-weights"]
        assert numbers(cli(*size, "--optimizer", name, *own.get(name, []), *shared))["bytes"][1] == row


def test_weights_in_8_bits(cli):
    """A byte for each and four for each 256 of a matrix; the embedding and the head stay, and so do gradients."""
    coded, plain = (
        numbers(cli("estimate", "--shape", "10x30*7", "--dtype", "bf16", "--rank", 4, *option, "--json"))["bytes"]
        for option in (["--int8-weights"], [])
    )
    assert coded[1]["weights"] == 7 * (300 + 2 * 4) and plain[1]["weights"] == 7 * 600
    assert coded[1] | {"weights": 0, "total": 0, "layerwise": 0} == plain[1] | {
        "weights": 0,
        "total": 0,
        "layerwise": 0,
    }
    assert coded[1]["total"] == plain[1]["total"] - 7 * (600 - 308)


def test_qgalore_of_7b(cli):
    """What the guide says of it."""
    size = ["estimate", "--preset", "7b", "--dtype", "bf16", "--int8-weights", "--optimizer", "qgalore", "--json"]
    small, paper = (numbers(cli(*size, "--rank", rank))["bytes"][1]["layerwise"] for rank in (256, 1024))
    assert small["at_once"]["total"] <= 9.5e9 < small["added"]["total"] < paper["at_once"]["total"]


def test_sketches(cli):
    """By hand: of a matrix [64, 32] at rank 8 a sketch of 64 lines in float32. Of other methods there is no column."""
    size = ["estimate", "--shape", "64x32*3", "--rank", 8, "--dtype", "bf16", "--optimizer"]
    ways = numbers(cli(*size, "flora", "--json"))["bytes"][1]["layerwise"]
    assert ways["added"] is None and ways["compressed"]["held"] == ways["compressed"]["due"] == 3 * 4 * 64 * 8
    assert ways["compressed"]["gradients"] == ways["compressed"]["held"] + 2 * 64 * 32
    assert "in sketches: gradients" in cli(*size, "flora").out and "compressed=True" in cli("estimate").out
    assert "sketches" not in cli(*size, "galore").out and "sketches" not in cli(*size, "adamw").out


def test_table(cli):
    outcome = cli("estimate", "--preset", "60m", "--dtype", "bf16", "--optimizer", "galore")
    assert outcome.code == 0 and "58,073,600 parameters, bf16, rank 128" in outcome.out
    assert "Moments of galore: auto. auto: the dtype of the weights, on an accelerator float32" in outcome.out
    mixed = cli("estimate", "--moment-dtype", "int8", "--plain-moment-dtype", "float32").out
    assert mixed.endswith("Moments: int8, float32 where nothing is projected.\n")
    assert "Moments: auto. Of qgalore: int8. auto: the dtype of the weights.\n" in cli("estimate").out
    assert "Int8Linear" in cli("estimate", "--int8-weights").out and "Int8Linear" not in mixed
    assert [line.split()[0] for line in outcome.out.splitlines() if line.startswith(("adamw", "galore"))] == [
        "adamw",
        "galore",
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rank", "256"], "`--rank` must be < 256"),
        (["--optimizer", "adamw", "--rank", "4"], "`--rank` must come with one of galore, .*, got adamw"),
        (["--optimizer", "adamw", "--proj-type", "left"], "`--proj-type` must come with one of galore"),
        (["--optimizer", "adamw", "--projector", "svd"], "`--projector` must come with one of galore"),
        (
            ["--optimizer", "fira", "--proj-type", "full"],
            "`--proj-type` must be one of std, .*, right for fira, got full",
        ),
        (["--optimizer", "apollo", "--proj-type", "full"], "`--proj-type` must be one of .* for apollo, got full"),
        (["--optimizer", "apollo", "--projector", "rsvd"], "`--projector` must be one of random, svd for apollo, got"),
        (
            ["--optimizer", "galore", "--projector", "random"],
            "`--projector` must be one of rsvd, svd for galore, got random",
        ),
        (["--projector", "svd"], "`--projector` must come with one `--optimizer`, got all; name the one"),
        (["--proj-type", "left"], "`--proj-type` must come with one `--optimizer`, got all; name the one"),
        (["--optimizer", "adamw", "--int8-weights"], "`--int8-weights` must come with one of galore, .*, got adamw"),
        (["--optimizer", "lisa", "--int8-weights"], "`--int8-weights` must be left out for lisa, which has AdamW"),
        (["--model", "x", "--preset", "1b"], "--preset: not allowed with argument --model"),
        (["--model", "x", "--dim", "64"], "`--dim` must not come with `--model`, which says all sizes; leave one out"),
        (
            ["--optimizer", "sgd"],
            "invalid choice: 'sgd' .choose from '?all'?, '?galore'?, '?qgalore'?, '?fira'?, '?apollo'?",
        ),
        (["--optimizer", "apollo", "--rank", "256"], "`--rank` must be < 256"),
        (["--optimizer", "lisa", "--rank", "4"], "`--rank` must be left out for lisa, which has AdamW inside"),
        (["--optimizer", "galore", "--density", "0.5"], "`--density` must come with frugal, got galore; leave it out"),
        (["--optimizer", "scale", "--rank", "4"], "`--rank` must be left out for scale, which takes matrices whole"),
        (["--preset", "1b", "--dim", "64"], "`--dim` must not come with `--preset`"),
        (["--shape", "3x4x5"], "must be MxN or MxN\\*COUNT, .* got '3x4x5'"),
        (["--shape", f"{2**63}x4"], "whole numbers from 1 to 9223372036854775807, got '9223372036854775808x4'"),
        (["--optimizer", "adamw", "--moment-dtype", "int8"], "`--moment-dtype` must come with one of galore"),
        (["--optimizer", "adamw", "--plain-moment-dtype", "auto"], "`--plain-moment-dtype` must come with one of"),
        (["--moment-dtype", "fp8"], "--moment-dtype: invalid choice: 'fp8'"),
        (["--shape", "0x4"], "got '0x4'"),
        (["--preset", "2b"], "invalid choice: '2b'"),
    ],
)
def test_refusals(cli, options, sentence):
    outcome = cli("estimate", *options)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert re.search(sentence, outcome.err), outcome.err
