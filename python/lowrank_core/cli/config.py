"""All that decides what a training run computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag, option, path, real, whole
from lowrank_core.memory.geometry import PROJ_TYPES
from lowrank_core.memory.storage import MOMENT_DTYPES

OPTIMIZERS = ("galore", "adamw")
PRECISIONS = ("fp32", "bf16", "amp-bf16", "amp-fp16")
# The best found by bench/train_sweep.py; `lr` is that of the matrices of attention and feed-forward.
TUNED: dict[str, dict[str, Any]] = {
    "galore": {"lr": 0.01, "lr_others": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0},
    "adamw": {"lr": 0.001, "lr_others": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.1},
}
GALORE: dict[str, Any] = {
    "update_proj_gap": 100,
    "scale": 0.125,
    "proj_type": "std",
    "projector": "rsvd",
    "moments": "keep",
    "moment_dtype": "auto",
    "plain_moment_dtype": None,
    "rounding": "nearest",
}
_TUNED = "tuned per optimizer"
_OTHERS = "that of the matrices, if given, else tuned"
_BOTH = "that of --optimizer, if given, else tuned"


# fmt: off
@dataclass(frozen=True)
class TrainConfig:
    """The options of `lowrank-core train` that decide its numbers; None means "decided by the others"."""

    text: tuple[str, ...] = option("data", (), "files or folders to train on",
                                   shown="the source of Python's standard library", nargs="+", metavar="PATH",
                                   type=path, action="extend")
    val_fraction: float = option("data", 0.1, "share of the text held out for validation", type=real(0, 1, ends="()"))

    dim: int = option("model", 256, "width", type=whole(2))
    layers: int = option("model", 4, "number of layers", type=whole(1))
    heads: int = option("model", 4, "attention heads; dim must be a multiple of 2 * heads", type=whole(1))
    ffn: int | None = option("model", None, "width of the SwiGLU layer", shown="8/3 dim, up to a multiple of 16",
                             type=whole(1), metavar="N")
    seq_len: int = option("model", 128, "bytes that a prediction can look back on", type=whole(2))

    optimizer: str = option("optimizer", "galore", "optimizer to train with", choices=OPTIMIZERS)
    compare: str | None = option("optimizer", None, "second optimizer, trained on the same batches", shown="none",
                                 choices=OPTIMIZERS)
    lr: float | None = option("optimizer", None, "peak learning rate of the matrices of attention and feed-forward",
                              shown=_TUNED, type=real(0, ends="(]"))
    lr_others: float | None = option("optimizer", None, "peak learning rate of embedding, head and norms",
                                     shown=_OTHERS, type=real(0, ends="(]"))
    compare_lr: float | None = option("optimizer", None, "--lr of --compare", shown=_TUNED, type=real(0, ends="(]"))
    compare_lr_others: float | None = option("optimizer", None, "--lr-others of --compare", shown=_OTHERS,
                                             type=real(0, ends="(]"))
    betas: tuple[float, float] | None = option("optimizer", None, "decay of the two moments", shown=_TUNED, nargs=2,
                                               type=real(0, 1, ends="[)"), metavar=("B1", "B2"))
    compare_betas: tuple[float, float] | None = option("optimizer", None, "--betas of --compare", shown=_BOTH, nargs=2,
                                                       type=real(0, 1, ends="[)"), metavar=("B1", "B2"))
    eps: float = option("optimizer", 1e-8, "Adam's epsilon", type=real(0, ends="(]"))
    weight_decay: float | None = option("optimizer", None, "decoupled decay of the matrices", shown=_TUNED,
                                        type=real(0))
    compare_weight_decay: float | None = option("optimizer", None, "--weight-decay of --compare", shown=_BOTH,
                                                type=real(0))

    rank: int | None = option("galore", None, "rank of the projection", shown="dim // 4", type=whole(1), metavar="N")
    update_proj_gap: int | None = option("galore", None, "steps from one refresh to the next",
                                         shown=str(GALORE["update_proj_gap"]), type=whole(1), metavar="N")
    scale: float | None = option("galore", None, "factor on the projected update", shown=str(GALORE["scale"]),
                                 type=real(0, ends="(]"))
    proj_type: str | None = option("galore", None, "side that is projected", shown=GALORE["proj_type"],
                                   choices=PROJ_TYPES)
    projector: str | None = option("galore", None, "factorization of the gradient", shown=GALORE["projector"],
                                   choices=("rsvd", "svd"))
    moments: str | None = option("galore", None, "what a refresh does to the moments", shown=GALORE["moments"],
                                 choices=("keep", "rotate"))
    moment_dtype: str | None = option("galore", None, "storage of moments", shown=GALORE["moment_dtype"],
                                      choices=MOMENT_DTYPES)
    plain_moment_dtype: str | None = option("galore", None, "of those of embedding, head and norms",
                                            shown="as --moment-dtype", choices=MOMENT_DTYPES)
    rounding: str | None = option("galore", None, "of bfloat16 weights", shown=GALORE["rounding"],
                                  choices=("nearest", "stochastic"))

    steps: int = option("schedule", 500, "optimizer steps; may grow when a run is resumed, which from there on takes "
                        "the learning rate of a run of that length", type=whole(1))
    batch_size: int = option("schedule", 8, "windows in one forward pass", type=whole(1))
    accumulation: int = option("schedule", 1, "forward passes per optimizer step", type=whole(1))
    warmup: int | None = option("schedule", None, "steps of linear warm-up", shown="steps // 10", type=whole(0),
                                metavar="N")
    min_lr_ratio: float = option("schedule", 0.1, "where the cosine ends, as a share of lr", type=real(0, 1))
    clip: float = option("schedule", 1.0, "largest gradient norm; 0 turns clipping off", type=real(0))
    precision: str = option("schedule", "fp32", "bf16: weights too; amp-...: autocast", choices=PRECISIONS)
    seed: int = option("schedule", 0, "decides the weights and the batches", type=whole(0))
    eval_every: int | None = option("schedule", None, "steps between two validations", shown="steps // 10",
                                    type=whole(1), metavar="N")
    eval_batches: int = option("schedule", 16, "validation batches, always the same", type=whole(1))
    # fmt: on

    @property
    def runs(self) -> tuple[str, ...]:
        """The optimizers to train with, in order."""
        return (self.optimizer,) if self.compare is None else (self.optimizer, self.compare)

    @property
    def window(self) -> int:
        """Bytes of one training example: `seq_len` inputs and the byte after the last."""
        return self.seq_len + 1

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one optimizer step predicts."""
        return self.batch_size * self.accumulation * self.seq_len

    def tuned(self, run: str) -> dict[str, Any]:
        """`lr`, `lr_others`, `betas` and `weight_decay` of one of `runs`: those given, else the best found for it."""
        other = "" if run == self.optimizer else "compare_"
        given = {name: getattr(self, other + name) for name in TUNED[run]}
        given["lr_others"] = given["lr"] if given["lr_others"] is None else given["lr_others"]
        for name in ("betas", "weight_decay"):
            given[name] = getattr(self, name) if given[name] is None else given[name]
        return {name: TUNED[run][name] if value is None else value for name, value in given.items()}

    def peak_lrs(self, run: str) -> tuple[float, float]:
        """Peak learning rates of one of `runs`: of the matrices of attention and feed-forward, and of the rest."""
        tuned = self.tuned(run)
        return tuned["lr"], tuned["lr_others"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists: what a round trip through JSON leaves as it is."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse. Raises TypeError for a field that does not exist."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def resolve(config: TrainConfig) -> TrainConfig:
    """Fills in what is None and checks what no single option can check.

    Raises:
      CliError: two options contradict each other, or one would have no effect.
    """
    _check_runs(config)
    if config.dim % (2 * config.heads):
        raise CliError(f"`--dim` must be a multiple of 2 * heads = {2 * config.heads}, got {config.dim}; change one")
    compared = {} if config.compare is None else config.tuned(config.compare)
    filled = replace(
        config,
        ffn=config.ffn or -(-8 * config.dim // (3 * 16)) * 16,
        **config.tuned(config.optimizer),
        **{f"compare_{name}": value for name, value in compared.items()},
        warmup=(warmup := config.steps // 10 if config.warmup is None else config.warmup),
        eval_every=config.eval_every or max(1, config.steps // 10),
    )
    if warmup > filled.steps:
        raise CliError(f"`--warmup` must be at most `--steps`, {filled.steps}, got {warmup}; lower it")
    if "galore" not in config.runs:
        return filled
    own = {name: default if (v := getattr(config, name)) is None else v for name, default in GALORE.items()}
    filled = replace(filled, rank=config.rank or max(1, config.dim // 4), **own)
    _check_rank(filled)
    return filled


def _check_runs(config: TrainConfig) -> None:
    if config.compare == config.optimizer:
        raise CliError(f"`--compare` must be another optimizer than `--optimizer`, got {config.compare} twice")
    for name in (f"compare_{name}" for name in TUNED[config.optimizer]):
        if config.compare is None and getattr(config, name) is not None:
            raise CliError(f"`{flag(name)}` must come with `--compare`; add `--compare adamw` or leave it out")
    if config.rounding is not None and config.precision != "bf16":
        raise CliError(
            f"`--rounding` must come with `--precision bf16`, got {config.precision}, whose weights are float32; "
            "leave it out"
        )
    for name in ("rank", *GALORE):
        if "galore" not in config.runs and getattr(config, name) is not None:
            raise CliError(f"`{flag(name)}` must come with the optimizer galore, got {config.optimizer}; leave it out")


def _check_rank(config: TrainConfig) -> None:
    smallest = min(config.dim, config.ffn or config.dim)
    if config.rank is not None and config.rank >= smallest:
        raise CliError(
            f"`--rank` must be < {smallest}, the smallest side of a projected matrix, got {config.rank}; "
            f"the largest allowed is {smallest - 1}"
        )


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first option of `one` whose value in `other` differs: its flag and both values in words."""
    for name, value in one.items():
        if value != other.get(name):
            return flag(name), in_words(value), in_words(other.get(name))
    return None


def in_words(value: Any) -> str:
    """The value of an option as a reader meets it."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "unset" if value is None or not text else text
