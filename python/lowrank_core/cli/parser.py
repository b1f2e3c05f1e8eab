"""The options of every command. Imports nothing heavy: `--help` must come at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lowrank_core import __version__
from lowrank_core.cli.bench.shapes import MODELS
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import ALL
from lowrank_core.cli.finetune.config import FinetuneConfig
from lowrank_core.cli.options import LARGEST, add_options, flag, path, quoted, real, whole
from lowrank_core.cli.presets import DTYPES, PRESETS
from lowrank_core.cli.study.sizes import SIZES
from lowrank_core.memory.frugal import SUBSPACES
from lowrank_core.memory.geometry import PROJ_TYPES
from lowrank_core.memory.methods import FACADES, METHODS, PROJECTORS
from lowrank_core.memory.storage import MOMENT_DTYPES


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence instead of the whole usage, and takes no option by half its name."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


SAVE_EVERY = 50  # steps
STUDY = ("hours", "recheck", "time")  # options of the comparison of all optimizers alone
MAX_THREADS = 1024  # beyond, systems refuse to start them, which ends the process

_Commands = argparse._SubParsersAction  # the type of `add_subparsers`, which has no public name


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lowrank-core`; `command` in its result is the name of the module that runs."""
    parser = Parser(prog="lowrank-core", description="Low-rank training of language models, and what it takes.")
    parser.add_argument("--version", action="version", version=f"lowrank-core {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_train(commands)
    _add_finetune(commands)
    _add_estimate(commands)
    _add_info(commands)
    _add_bench(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options in `argv`, None for those of the process; ends it with a sentence where they are wrong."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.error("COMMAND is missing; it must be train, finetune, estimate, info or bench")
    return options


# fmt: off
def _add_train(commands: _Commands[Parser]) -> None:
    train = commands.add_parser(
        "train",
        help="train a byte-level language model on real text",
        description="Trains a byte-level language model from scratch. Writes metrics.jsonl, checkpoints and a report "
        "(report.html, report.png, summary.json) to a folder. Ctrl-C stops with a checkpoint; --resume goes on from "
        "the last one, bit for bit.",
    )
    _add_run(train, "runs/train")
    add_options(train, TrainConfig)
    study = train.add_argument_group(
        f"comparison (--optimizer {ALL})",
        "Tunes every optimizer alike and compares them over seeds, in runs of one thread, two at a time. They are kept "
        "in --out and made once. Models, text and steps are its own.",
    )
    study.add_argument("--hours", default=argparse.SUPPRESS, type=real(0), metavar="H",
                       help="time after which no run is begun; 0 only writes the page (default: until all are made)")
    study.add_argument("--recheck", action="store_const", const=True, default=argparse.SUPPRESS,
                       help="where sources have changed, first repeat one run of each optimizer; if its losses are the "
                       "same to the bit, the others are not made again")
    study.add_argument("--time", default=argparse.SUPPRESS, choices=SIZES, metavar="SIZE",
                       help=f"make no runs, but measure the seconds of a step at that size, {' or '.join(SIZES)}; let "
                       "nothing else run meanwhile")


def _add_finetune(commands: _Commands[Parser]) -> None:
    finetune = commands.add_parser(
        "finetune",
        help="train an adapter of a pretrained model from a local folder",
        description="Trains a low-rank adapter beside a pretrained encoder or decoder, for classification or as a "
        "language model. Writes adapter_config.json and adapter_model.safetensors, which PEFT loads, metrics.jsonl, a "
        "checkpoint and a report (report.html, report.png, summary.json) to a folder. Ctrl-C stops with a checkpoint; "
        "--resume goes on from the last one, bit for bit. Nothing is downloaded.",
    )
    _add_run(finetune, "runs/finetune")
    add_options(finetune, FinetuneConfig)


def _add_run(parser: argparse.ArgumentParser, out: str) -> None:
    """What all commands that train take: the folder, `out` where none is given, and how it is written."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", default=out, type=path, metavar="DIR",
                     help="folder of the run (default: %(default)s)")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own options")
    again.add_argument("--overwrite", action="store_true", help="delete the run in --out and start anew")
    run.add_argument("--save-every", type=whole(1), default=SAVE_EVERY, metavar="N",
                     help="steps between two checkpoints (default: %(default)s)")
    run.add_argument("--threads", type=whole(1, MAX_THREADS), metavar="N",
                     help="CPU threads (default: torch's choice; a resumed run keeps its own)")


def _add_estimate(commands: _Commands[Parser]) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="memory of weights, gradients and optimizer state before you run",
        description="Prints the bytes that training holds besides activations, for AdamW and for other optimizers, "
        "with ordinary and with layer-wise updates.",
    )
    what = estimate.add_mutually_exclusive_group()
    what.add_argument("--model", type=path, metavar="FILE",
                      help="a model by its transformers config.json, or a folder that has one; no weights are needed")
    what.add_argument("--preset", choices=tuple(PRESETS), help="a Llama model of that size (vocabulary 32000)")
    what.add_argument("--shape", action="append", type=matrix, metavar="MxN[*COUNT]",
                      help="weight matrices, can be repeated, e.g. 4096x11008*64")
    size = estimate.add_argument_group("the decoder of `train`, where neither is given")
    for name in ("dim", "layers", "ffn"):
        size.add_argument(flag(name), default=argparse.SUPPRESS, type=whole(1), metavar="N", help="as in `train`")
    estimate.add_argument("--optimizer", default="all", choices=("all", *METHODS, *FACADES, "adamw"),
                          help="shown next to AdamW (default: %(default)s)")
    estimate.add_argument("--rank", type=whole(1), metavar="N",
                          help="rank of the projection (default: a quarter of the width), where an optimizer has one")
    estimate.add_argument("--proj-type", choices=PROJ_TYPES, help="side that is projected (default: std)")
    estimate.add_argument("--projector", choices=PROJECTORS,
                          help="what finds the basis (default: that of the optimizer); apollo stores it for svd alone")
    estimate.add_argument("--subspace", choices=SUBSPACES, help="of frugal (default: columns)")
    estimate.add_argument("--density", type=real(0, 1), help="share that is at work, of frugal, in place of --rank")
    estimate.add_argument("--active", type=whole(1), metavar="N", help="layers that lisa trains at a time (default: 2)")
    estimate.add_argument("--moment-dtype", choices=MOMENT_DTYPES,
                          help="storage of moments (default: that of the optimizer)")
    estimate.add_argument("--plain-moment-dtype", choices=MOMENT_DTYPES,
                          help="of those of what is not projected (default: as --moment-dtype)")
    estimate.add_argument("--dtype", default="fp32", choices=tuple(DTYPES),
                          help="of weights and gradients (default: %(default)s)")
    estimate.add_argument("--int8-weights", action="store_true",
                          help="weights of linear layers, but for the head, in 8 bits (Int8Linear)")
    _add_json(estimate)


def _add_info(commands: _Commands[Parser]) -> None:
    info = commands.add_parser(
        "info",
        help="version, build, instruction sets, thread pools, devices",
        description="Prints what this installation is and what it found on this machine.",
    )
    _add_json(info)


def _add_bench(commands: _Commands[Parser]) -> None:
    bench = commands.add_parser("bench", help="measure the optimizers on this machine",
                                description="Measures this installation on this machine.")
    step = bench.add_subparsers(dest="what", metavar="WHAT", required=True).add_parser(
        "step",
        help="the optimizers' steps beside each other",
        description="Prints time and memory of a step of every method, beside torch's AdamW and Muon and the packages "
        "of others that are installed, on the matrices of a model with random weights and gradients.",
    )
    step.add_argument("--shapes", default="llama-130m", choices=tuple(MODELS), help="model (default: %(default)s)")
    step.add_argument("--rank", type=whole(1), default=128, metavar="N",
                      help="of all methods that have one (default: %(default)s)")
    step.add_argument("--methods", nargs="+", choices=tuple(METHODS), metavar="NAME",
                      help=f"of {', '.join(METHODS)} (default: all); galore always takes part")
    step.add_argument("--rounds", type=whole(1, 10_000), default=7, metavar="N",
                      help="timed steps of each (default: %(default)s; fewer, but five, where they are slow)")
    step.add_argument("--threads", type=whole(1, MAX_THREADS), metavar="N",
                      help="CPU threads (default: torch's choice)")
    step.add_argument("--precision", default="highest", choices=("highest", "medium"),
                      help="of float32 products, as torch calls it (default: %(default)s)")
    step.add_argument("--no-peers", dest="peers", action="store_false", help="leave out the packages of others")
    step.add_argument("--no-memory", dest="memory", action="store_false",
                      help="leave out the peak of memory, for which each steps once more in a process of its own")
    step.add_argument("--stagger", action="store_true",
                      help="measure instead how evenly 400 steps spread their refreshes, three times for each method")
    step.add_argument("--json", type=path, metavar="PATH", help="also write everything to this file")
# fmt: on


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def matrix(text: str) -> tuple[int, int, int]:
    """`MxN` or `MxN*COUNT` as (m, n, count), all >= 1."""
    size, _, count = text.partition("*")
    numbers = [*size.split("x"), count or "1"]
    if len(numbers) != 3 or not all(n.isdecimal() and len(n) < 20 and 1 <= int(n) <= LARGEST for n in numbers):
        raise argparse.ArgumentTypeError(
            f"must be MxN or MxN*COUNT, whole numbers from 1 to {LARGEST}, got {quoted(text)}"
        )
    m, n, times = map(int, numbers)
    return m, n, times
