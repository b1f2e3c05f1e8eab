"""Trains every tuner of PEFT with optimizers of this package and writes docs/results/hosting.md.

`python tools/hosting.py`, a few minutes. `--only NAME...` tries some and writes nothing. The status is 1 if one fails
that is not listed with a cause outside of this package.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import tempfile
import warnings
from datetime import datetime, timezone
from importlib.metadata import version

from report import ROOT

RESULT = ROOT / "docs/results/hosting.md"
HEAD = """# Adapters of PEFT under optimizers of this package

Every tuner that PEFT {peft} builds, on a Llama and a BERT of two layers (width 16), trained for 12 steps on one batch.
"yes": the loss falls, frozen weights keep their bits, and a run that was saved and resumed gives the same losses to the
bit. transformers {transformers}, torch {torch}; `python tools/hosting.py`, {machine}, {date}.

LoKO observes all outputs of the encoder, and of the decoder draws of the Fisher matrix (`fisher="auto"`), from
`p0` = 0.1; where gradients are of the order of 1e-4 or less, 10 (CPT) or 10,000 (trainable tokens, X-LoRA), since a
variance is in units of the parameters squared.

"""


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests/integrations"))
    warnings.simplefilter("ignore")
    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]

    cases = importlib.import_module("hosting_cases")
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", nargs="+", choices=cases.TUNERS, metavar="NAME", default=list(cases.TUNERS))
    names = options.parse_args().only
    torch.set_num_threads(1)
    places = [(name, kind) for name in names for kind in cases.kinds_of(name)]
    rows, notes, failed = [], [], 0
    for name, kind in tqdm(places, unit="model", disable=None):
        cells = []
        for optimizer in cases.OPTIMIZERS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    cases.check(name, kind, optimizer, folder)
                    cells.append("yes")
                except Exception as error:  # whatever a library raises is what the table is to say
                    listed = cases.UPSTREAM.get((name, kind))
                    expected = listed is not None and isinstance(error, listed[0]) and listed[1] in str(error)
                    failed += not expected
                    cells.append("no, see below" if expected else "**no**")
                    why = listed[2] if expected and listed else "not explained"
                    notes.append(f"- {name}, {kind}: {why}. `{type(error).__name__}: {error}`")
        rows.append(f"| {name} | {kind} | {' | '.join(cells)} |")
        tqdm.write(rows[-1])
    if set(names) == set(cases.TUNERS):
        head = HEAD.format(
            peft=version("peft"), transformers=version("transformers"), torch=version("torch"),
            machine=platform.processor() or platform.machine(), date=datetime.now(timezone.utc).date(),
        )  # fmt: skip
        table = [
            f"| tuner | model | {' | '.join(cases.OPTIMIZERS)} |",
            "| --- | --- |" + " --- |" * len(cases.OPTIMIZERS),
        ]
        RESULT.write_text(head + "\n".join([*table, *rows, "", *dict.fromkeys(notes)]) + "\n")
        print(f"wrote {RESULT.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
