"""Tests of both extensions side by side, which `make emulated` runs: elsewhere there is one."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("LOWRANK_CORE_EMULATED") else ["test_*.py"]
