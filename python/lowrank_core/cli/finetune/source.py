"""The data of a run, from what `--data` and `--task` say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.docstrings import docstrings
from lowrank_core.cli.finetune.rows import Parted, Row, check_labels, is_table, part, read_tables
from lowrank_core.cli.text import SEPARATOR, load_corpus


def load(config: FinetuneConfig, out: Path) -> Parted:
    """Reads and parts the data; what a run wrote into the folder `out` is no text.

    Raises:
      CliError: a file is missing, broken, empty, or of the wrong kind.
    """
    labelled = config.task == CLASSIFICATION
    if not config.data:
        parted = part([row if labelled else Row(row.text) for row in docstrings()], config.val_fraction)
    elif _are_tables(config.data):
        label = config.label_column if labelled else None
        parted = part(read_tables(config.data, config.text_column, label), config.val_fraction)
    elif labelled:
        raise CliError(
            f"`--data` must be a CSV, TSV or JSONL file with labels, got '{config.data[0]}'; add `--task causal-lm` to "
            "train on plain text"
        )
    else:
        return _plain(config, out)
    if labelled:
        check_labels(parted.labels)
    return parted


def _are_tables(paths: Sequence[str]) -> bool:
    tables = [is_table(path) for path in paths]
    if any(tables) and not all(tables):
        raise CliError(
            f"`--data` must be tables or plain text, got both: '{paths[tables.index(True)]}' and "
            f"'{paths[tables.index(False)]}'; leave one out"
        )
    return all(tables)


def _plain(config: FinetuneConfig, out: Path) -> Parted:
    """Files of text, parted as `train` parts them."""
    try:
        corpus = load_corpus(config.data, val_fraction=config.val_fraction, window=config.seq_len + 1, out=out)
    except CliError as refusal:
        raise CliError(str(refusal).replace("`--text`", "`--data`")) from refusal
    train, val = (
        [Row(text) for data in side.tobytes().split(SEPARATOR) if (text := data.decode("utf-8", errors="replace"))]
        for side in (corpus.train, corpus.val)
    )
    return Parted(train, val, ("",), corpus.skipped, corpus.sha256)
