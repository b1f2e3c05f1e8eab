"""Imported once by the process that every run is forked from: what takes seconds to import, and starts no thread."""

import lowrank_core.cli.study.measure
import lowrank_core.cli.study.pool  # noqa: F401
