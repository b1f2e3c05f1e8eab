"""`optimizers.md`, the page of the comparison: written from the run files and the file of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import reading, write_atomic
from lowrank_core.cli.study import machines, published, tables
from lowrank_core.cli.study.sizes import Size
from lowrank_core.cli.study.stages import Study
from lowrank_core.cli.study.store import COMMAND, Store

PAGE, SECONDS, RUNS = "optimizers.md", "optimizers_seconds.json", "runs"
_TITLE = "# Optimizers compared, small-scale: rankings may flip at size"
_HOW = """\
Every optimizer trains the same byte-level decoder from the same initial weights, on the same batches, for the same
number of steps, with the same warm-up and cosine, and is compared after the last step. Each is tuned alike: at most 12
runs on seed 0 at the small size, one option after the other from the best so far, the rate followed until it is
interior. What is reported are other seeds, 1 to 5, paired with tuned AdamW's. At the large size each has its best rate
and that rate's two neighbours on seed 0, then the same seeds.

All have two rates: `lr` for the matrices of attention and feed-forward, `lr_others` for embedding, head and norms,
which are AdamW's with every method. `adamw` is torch's fused AdamW with that freedom, `adamw, one rate` without it;
`adamw-8bit` is that of bitsandbytes, `galore-torch` GaLore's own package. The random projections are `apollo` and
`flora`. `muon` is ours, with torch's definition.

Losses are validation losses in nats per byte. "Better" and "worse" stand only where the 95 % interval (Student's,
paired by seed) excludes zero at both sizes: with so many lines, one in twenty excludes it at one size by chance.
Losses come from runs of one thread in the background. Seconds do not: they are steps times the seconds of one step,
measured in turns on a quiet machine, forward and backward pass included (`galore-torch`, which searches all subspaces
in one step, does so at least once in the steps that are timed). The state is counted by the storages behind its
tensors. Peak memory is that of the whole process, torch and text included."""


def write_page(folder: Path) -> Path:
    """Writes the page of the runs in `folder`, those too that today's sources might make otherwise.

    Raises:
      CliError: a file is damaged, or cannot be written.
    """
    path = folder / PAGE
    write_atomic(path, text_of(Study(Store(folder / RUNS, past=True)), read_seconds(folder)).encode())
    return path


def text_of(study: Study, timing: dict[str, Any]) -> str:
    """The whole page."""
    seconds: tables.Seconds = timing.get("sizes", {})
    parts = [
        _TITLE, f"Written by `{COMMAND}` from the files in `{RUNS}/`.", _HOW, _made(study),
        "## In short", tables.in_short(study, seconds),
        _heading(study.small), tables.of_size(study, study.small, seconds),
        _heading(study.large), tables.of_size(study, study.large, seconds),
        _clock(timing),
        "## Published, and here", _published(study), published.published(study, seconds),
        "## What was found by tuning", _TUNED, tables.tuned(study),
        "## One key of the default otherwise", _ABLATED, tables.ablations(study),
        "## Twice the steps, half the rank", _FOLLOWED, tables.followed(study),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def read_seconds(folder: Path) -> dict[str, Any]:
    """What `--time` has measured; empty if it has not.

    Raises:
      CliError: the file is damaged.
    """
    path = folder / SECONDS
    if not path.exists():
        return {}
    with reading(path):
        data = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(data)
        found["sizes"]
    except (ValueError, TypeError, KeyError, RecursionError) as failure:
        raise CliError(f"'{path}' is damaged ({failure}); delete it and measure again with `--time`") from failure
    return found


_PAIRS = """\
Another kind of processor rounds otherwise, and training amplifies that, as it does another seed: a pair of which one
run was made on another processor than the other is no exact pair. It counts all the same, as its interval holds what
that adds. Of {total} pairs with AdamW's runs {mixed} are of two kinds."""
_CLAIMED = """\
Each line is one published figure beside ours. Perplexities are shown as they are, with the loss relative to the peer's,
which is the same for tokens and bytes: ln(perplexity) over ln(the peer's), less one; here it is the mean difference and
its 95 % interval over the peer's mean. State and time are ratios. "As published" and "not reproduced" are said of
losses, where both sizes show a sign, against the sign of the mean claim. The models there are 20 to 3,000 times as
large, trained on thousands of times the text, and timed on GPUs."""
_TUNED = """\
`lr` and what follows are options of `lowrank-core train`; `scale` of galore, galore-torch, qgalore, fira and
adarankgrad stays at 0.25, the first beta at 0.9 (ldadam 0.908). An option "at the edge" was best at the smallest or
largest value tried, and its ladder goes on: the trials were spent. A search that is not finished shows its best so
far."""
_ABLATED = "The small size, the same seeds, paired with the tuned default."
_FOLLOWED = """\
The small size and the options tuned there. What has no rank has the same run at half of it; dion2 steps an eighth of
the rows."""


def _heading(size: Size) -> str:
    model = f"width {size.dim}, {size.layers} layers, rank {size.rank}"
    work = f"{size.steps} steps of {size.batch_size} windows of {size.seq_len} bytes"
    return f"## {size.name.capitalize()}: {model}\n\n{work}."


def _made(study: Study) -> str:
    records = list(study.store.records())
    if not records:
        return "No run has been made yet."
    dates = sorted(record["date"][:10] for record in records)
    between = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    total, mixed = machines.pairs(study)
    exact = _PAIRS.format(total=total, mixed=mixed)
    done = f"{len(records)} of at most {study.most_runs()} runs are made, one thread each, {between}"
    return f"{done}: {machines.kinds(study)}.\n\n{exact}"


def _published(study: Study) -> str:
    names = published.without(study)
    return f"{_CLAIMED}\n\nNo published figure was at hand of {', '.join(names)}." if names else _CLAIMED


def _clock(timing: dict[str, Any]) -> str:
    if not timing:
        return "Seconds are not measured yet."
    rows = timing["measured"]
    return "\n".join(
        f"Seconds of {name}: `{one['command']}`, {one['steps']} interleaved steps, {one['threads']} threads, "
        f"{one['machine']['cpu']}, {one['date'][:10]}."
        for name, one in rows.items()
    )
