"""`estimate`: what it prints is what training holds."""

from __future__ import annotations

import json
import re

import pytest


def numbers(outcome) -> dict:
    assert outcome.code == 0
    return json.loads(outcome.out)


def test_default_is_the_decoder_of_train(cli):
    result = numbers(cli("estimate", "--json"))
    assert result["rank"] == 64 and 3e6 < result["parameters"] < 4e6
    adamw, galore = result["bytes"]
    assert adamw["weights"] == adamw["gradients"] == 4 * result["parameters"]
    assert galore["state"] <= 0.40 * adamw["state"]
    assert galore["total"] == galore["weights"] + galore["gradients"] + galore["state"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equals_what_a_run_holds(tiny, cli, tmp_path, precision):
    run = cli(*tiny, "--compare", "adamw", "--precision", precision, "--out", tmp_path)
    assert run.code == 0
    held = {row["optimizer"]: row["state_bytes"] for row in json.loads((tmp_path / "summary.json").read_text())["runs"]}
    size = ["--dim", 16, "--layers", 1, "--ffn", 24, "--rank", 4, "--dtype", precision]
    estimated = {row["optimizer"]: row["state"] for row in numbers(cli("estimate", *size, "--json"))["bytes"]}
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


def test_explicit_shapes(cli):
    result = numbers(cli("estimate", "--shape", "64x32*3", "--shape", "16x16", "--rank", 8, "--json"))
    assert result["parameters"] == 3 * 64 * 32 + 16 * 16
    only_adamw = numbers(cli("estimate", "--shape", "64x32", "--optimizer", "adamw", "--json"))
    assert [row["optimizer"] for row in only_adamw["bytes"]] == ["adamw"] and only_adamw["rank"] is None


def test_table(cli):
    outcome = cli("estimate", "--preset", "60m", "--dtype", "bf16")
    assert outcome.code == 0 and "58,073,600 parameters, bf16, rank 128" in outcome.out
    assert [line.split()[0] for line in outcome.out.splitlines() if line.startswith(("adamw", "galore"))] == [
        "adamw",
        "galore",
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rank", "256"], "`--rank` must be < 256"),
        (["--optimizer", "adamw", "--rank", "4"], "`--rank` must come with the optimizer galore"),
        (["--optimizer", "adamw", "--proj-type", "left"], "`--proj-type` must come with the optimizer galore"),
        (["--preset", "1b", "--dim", "64"], "`--dim` must not come with `--preset`"),
        (["--shape", "3x4x5"], "must be MxN or MxN\\*COUNT, .* got '3x4x5'"),
        (["--shape", f"{2**63}x4"], "whole numbers from 1 to 9223372036854775807, got '9223372036854775808x4'"),
        (["--shape", f"{2**31}x{2**31}"], "at most 2\\^60 numbers, got 2147483648 x 2147483648"),
        (["--dim", str(2**60)], "at most 2\\^60 numbers, got 256 x 1152921504606846976"),
        (["--shape", "0x4"], "got '0x4'"),
        (["--preset", "2b"], "invalid choice: '2b'"),
    ],
)
def test_refusals(cli, options, sentence):
    outcome = cli("estimate", *options)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert re.search(sentence, outcome.err), outcome.err
