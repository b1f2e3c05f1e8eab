"""Settings of every test: Hypothesis draws the same examples in every run, and a package that may be missing is missed
by the tests that need it alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator

import pytest
from testing import slow
from testing.emulation import emulate

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # its tests are skipped below
    pass
else:
    settings.register_profile(
        "lowrank_core", derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("lowrank_core")

emulate()  # for `make emulated`

# A shell's background jobs start with Ctrl-C ignored, which their children inherit. The tests of stops press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

OPTIONAL = {"torch", "cupy", "hypothesis", "scipy", "sklearn", "safetensors", "matplotlib", "tqdm"}
OPTIONAL |= {"transformers", "accelerate", "peft", "lightning", "tensorboard"}  # of the extra "integrations"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow."""
    slow.mark(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What torch draws in a test is the same whichever tests ran before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips a file that cannot be imported for want of an optional package; the summary counts them by folder.

    Where CI is set in the environment all of them are to be there: the error then stays one.
    """
    report = yield
    call = getattr(report, "call", None)
    name = missing(call.excinfo.value) if report.failed and call is not None else None
    if name is not None and isinstance(collector, pytest.Module) and not os.environ.get("CI"):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path.parent), 0, f"Skipped: {name} is not installed")
    return report


def missing(error: BaseException | None) -> str | None:
    """The optional package whose absence is behind `error`."""
    while error is not None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in OPTIONAL:
            return package
        error = error.__cause__ or error.__context__
    return None
