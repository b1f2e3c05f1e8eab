"""The options of every command. Imports nothing heavy: `--help` must come at once."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lowrank_core.cli import config
from lowrank_core.cli.presets import DTYPES, PRESETS


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lowrank-core`; `command` in its result names the module that runs."""
    parser = Parser(prog="lowrank-core", description="Low-rank training: train, estimate its memory, inspect the build.",
                    allow_abbrev=False)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_estimate(commands)
    _add_info(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a byte-level language model on real text",
        description="Trains a byte-level language model from scratch and writes metrics.jsonl, checkpoints and a report "
        "(report.html, report.png, summary.json) to a folder. Ctrl-C stops with a checkpoint; --resume goes on bit for bit.",
        allow_abbrev=False,
    )
    run = train.add_argument_group("run")
    run.add_argument("--out", default="runs/train", metavar="DIR", help="folder of the run (default: %(default)s)")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own options")
    again.add_argument("--overwrite", action="store_true", help="delete the run in --out and start anew")
    run.add_argument("--save-every", type=config.whole(1), default=50, metavar="N",
                     help="steps between two checkpoints (default: %(default)s)")  # fmt: skip
    run.add_argument("--threads", type=config.whole(1), metavar="N",
                     help="CPU threads (default: torch's choice; a resumed run keeps its number)")  # fmt: skip
    config.add_options(train)


def _add_estimate(commands: argparse._SubParsersAction[Parser]) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="memory of weights, gradients and optimizer state before you run",
        description="Prints the bytes that training holds besides activations, for AdamW and for the optimizer asked for.",
        allow_abbrev=False,
    )
    what = estimate.add_mutually_exclusive_group()
    what.add_argument("--preset", choices=tuple(PRESETS), help="a Llama model of that size (vocabulary 32000)")
    what.add_argument("--shape", action="append", type=matrix, metavar="MxN[*COUNT]",
                      help="a weight matrix, repeatable, e.g. 4096x11008*64")  # fmt: skip
    size = estimate.add_argument_group("the decoder of `train`, where neither is given")
    for name in ("dim", "layers", "ffn"):
        size.add_argument(config.flag(name), default=argparse.SUPPRESS, type=config.whole(1), metavar="N")
    estimate.add_argument("--optimizer", default="galore", choices=config.OPTIMIZERS, help="(default: %(default)s)")
    estimate.add_argument("--rank", type=config.whole(1), metavar="N",
                          help="rank of the projection (default: a quarter of the model's width)")  # fmt: skip
    estimate.add_argument("--proj-type", default="std", choices=config.PROJ_TYPES, help="(default: %(default)s)")
    estimate.add_argument("--dtype", default="fp32", choices=tuple(DTYPES), help="of the weights (default: %(default)s)")
    estimate.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_info(commands: argparse._SubParsersAction[Parser]) -> None:
    info = commands.add_parser(
        "info",
        help="version, build, instruction sets, thread pools, devices",
        description="Prints what this installation is and what it found on this machine.",
        allow_abbrev=False,
    )
    info.add_argument("--json", action="store_true", help="print JSON instead of a table")


def matrix(text: str) -> tuple[int, int, int]:
    """`MxN` or `MxN*COUNT` as (m, n, count), all >= 1."""
    size, _, count = text.partition("*")
    numbers = [*size.split("x"), count or "1"]
    if len(numbers) != 3 or not all(n.isdecimal() and int(n) >= 1 for n in numbers):
        raise argparse.ArgumentTypeError(f"must be MxN or MxN*COUNT, got '{text}'")
    m, n, times = map(int, numbers)
    return m, n, times
