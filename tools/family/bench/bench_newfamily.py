"""What the family is against its peers.

python bench/bench_newfamily.py [--threads 2] [--rounds 15]
"""

from __future__ import annotations

import argparse

import lowrank_core
import torch
from _harness import Bench
from lowrank_core.reference import newfamily as reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for all rivals")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    bench = Bench("bench_newfamily", rounds=options.rounds, threads=options.threads)
    x = torch.randn(1024, 1024)
    exact = reference.newfamily(x)

    def error(answer: object) -> float:
        return float(torch.linalg.vector_norm(torch.as_tensor(answer) - exact))

    rivals = {"torch": lambda: 2 * x, "lowrank_core": lambda: lowrank_core.newfamily(x)}
    bench.compare("1024²", rivals, baseline="torch", error=error, limit=0.0, nbytes=8.0 * x.numel())
    bench.finish()


if __name__ == "__main__":
    main()
