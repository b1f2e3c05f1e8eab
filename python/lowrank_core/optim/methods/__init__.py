"""Every method by the name that the command line, the estimate, the benches and the tests use."""

from importlib import import_module

from lowrank_core.memory import methods
from lowrank_core.optim.loop import LowRankOptimizer


def _class_of(path: str) -> type[LowRankOptimizer]:
    module, _, name = path.partition(":")
    found: type[LowRankOptimizer] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


METHODS: dict[str, type[LowRankOptimizer]] = {
    name: _class_of(method.optimizer) for name, method in methods.METHODS.items()
}
