"""The examples in the docstrings of public names."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Iterator
from types import ModuleType


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes that a user calls, by their full names; what a function returns is shown by its own.

    Of a module within `__all__` the functions that are written there.
    """
    for name in module.__all__:
        item = getattr(module, name)
        if isinstance(item, ModuleType):
            written = {key: value for key, value in vars(item).items() if callable(value) and not key.startswith("_")}
            for key, value in written.items():
                if not isinstance(value, type) and value.__module__ == item.__name__:
                    yield f"{item.__name__}.{key}", value
        elif callable(item) and not (isinstance(item, type) and issubclass(item, tuple)):
            yield f"{module.__name__}.{name}", item


def example(name: str, item: object) -> doctest.DocTest:
    """The lines after `Example:` in a docstring, to run in a namespace of their own; none where there are none."""
    _, _, lines = (item.__doc__ or "").partition("Example:\n")
    return doctest.DocTestParser().get_doctest(lines, {}, name, None, 0)


def tells(test: doctest.DocTest) -> bool:
    """Whether the example shows what comes out."""
    return any(line.want or line.source.startswith("assert ") for line in test.examples)


def failures(test: doctest.DocTest) -> str:
    """What doctest reports of an example; nothing if it holds."""
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    return "".join(report)
