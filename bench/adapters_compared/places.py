"""Where methods are compared: a task and the number of samples of a step."""

from __future__ import annotations

from typing import NamedTuple

from adapters_compared.decoder import SMOLLM2
from adapters_compared.digits import DIGITS, SHIFTED
from adapters_compared.documents import LAST, TWO, WHOLE

TASKS = {task.name: task for task in (DIGITS, SHIFTED, LAST, TWO, WHOLE, SMOLLM2)}


class Place(NamedTuple):
    """`tuned`: the task whose search gives the options, at the same batch; its own, or another's. `seeds`: how many of
    those that are reported are run; None: all."""

    task: str
    batch: int
    tuned: str
    seeds: int | None = None

    @property
    def own(self) -> bool:
        """Whether the search is here."""
        return self.task == self.tuned


PLACES = (
    *(
        Place(task.name, batch, tuned.name)
        for task, tuned in ((DIGITS, DIGITS), (SHIFTED, DIGITS), (LAST, LAST), (TWO, LAST), (WHOLE, LAST))
        for batch in (1, 8)
    ),
    Place(SMOLLM2.name, 8, LAST.name, seeds=1),  # a large one takes minutes
)
