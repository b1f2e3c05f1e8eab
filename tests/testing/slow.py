"""What continuous integration leaves to `make test-all`: further cases of tests that have one there for each class.

Such a test has the marker `slow`; `pytest -m "not slow"` runs the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# Tests, and of their cases those that always run: none, where the test has no cases.
ALWAYS: dict[str, set[str]] = {
    "tests/cli/test_methods.py::test_methods_learn": set(),
    "tests/cli/test_methods.py::test_a_run_that_is_stopped_and_resumed": {
        "qgalore beside galore", "fira of the code", "frugal by blocks", "dct auto", "lisa",
    },
    "tests/cli/test_layers.py::test_a_damaged_file_is_said_and_goes_on": {"garbage-stopped", "a row-finished"},
    "tests/cli/test_old_runs.py::test_an_old_run_goes_on": {"--compare adamw"},
    "tests/cli/finetune/test_finetune_options.py::test_a_resume_in_every_precision": {
        "lora-amp-fp16-2", "geolora-amp-bf16-2", "loko-bf16-1",
    },
}  # fmt: skip
# Of the optimizers' cases those that always run beside the first one of each class.
BESIDE = {"galore-full", "galore-int8", "galore-stochastic", "frugal-block", "dct-int8"}


def mark(items: Iterable[pytest.Item]) -> None:
    """Marks further cases as slow."""
    for item in items:
        test, _, case = item.nodeid.partition("[")
        always = ALWAYS.get(test)
        params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        left = always is not None and case.removesuffix("]") not in always
        if left or any(map(is_further, params.values())):
            item.add_marker(pytest.mark.slow)


def is_further(value: Any) -> bool:
    """True for an optimizer's case that is not the first one of its class, which has a plain name, nor in `BESIDE`."""
    is_case = type(value).__name__ == "Case" and hasattr(value, "make")
    return is_case and "-" in value.name and value.name not in BESIDE
