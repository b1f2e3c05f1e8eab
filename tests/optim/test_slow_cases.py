"""Each optimizer has a case that is never left out."""

from __future__ import annotations

from optim_cases import CASES
from testing import slow


def test_each_optimizer_has_a_case_that_always_runs() -> None:
    assert {case.name for case in CASES} >= slow.BESIDE
    always = [case for case in CASES if not slow.is_further(case)]
    assert {case.optimizer for case in always} == {case.optimizer for case in CASES}
    assert len(always) < len(CASES)
