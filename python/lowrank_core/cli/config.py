"""All that decides what a training run computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowrank_core.cli.defaults import (
    ALL,
    OPTIMIZERS,
    OWN,
    PAIRED,
    SHARED,
    TUNED,
    default_in_words,
    listed,
    takers,
)
from lowrank_core.cli.options import PRECISIONS, YES_OR_NO, flag, option, path, real, whole
from lowrank_core.cli.settings import read, setting
from lowrank_core.memory.frugal import SUBSPACES
from lowrank_core.memory.geometry import PROJ_TYPES
from lowrank_core.memory.methods import METHODS, PROJECTORS
from lowrank_core.memory.storage import AUTO_BASIS, GROUP_SIZES, MOMENT_DTYPES, RULES
from lowrank_core.ops.dct_select.selection import BASES

FACTORS = ("original", "match_rms_adamw")
_TUNED = "tuned for galore and adamw; of the others galore's"
_RATE = "tuned for each with a model of the default size"
_OTHERS = "that of the matrices, if given, else as --lr"
_BOTH = "that of --optimizer, if given, else as --lr"


def _method(name: str, text: str, **parse: Any) -> Any:
    """An option that methods have, some or all."""
    has = takers(name)
    only = "" if len(has) == len(METHODS) else f", of {listed(has)}"
    return option("method", None, text + only, shown=parse.pop("shown", None) or default_in_words(name), **parse)


def _of_compare(name: str, **parse: Any) -> Any:
    """`name` of a second method."""
    return option(
        "method",
        None,
        f"{flag(name)} of --compare, if both are methods that project",
        shown=f"that of {flag(name)} for it",
        **parse,
    )


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

    optimizer: str = option("optimizer", "galore", "optimizer to train with; "
                            f"{ALL}: the comparison of all, see below", choices=(*OPTIMIZERS, ALL))
    compare: tuple[str, ...] = option("optimizer", (), "others as of --optimizer, trained on the same batches",
                                      shown="none", nargs="+", metavar="METHOD", choices=OPTIMIZERS)
    set: tuple[str, ...] = option("optimizer", (), "an option of one optimizer of the run, as in muon.lr=0.02 or "
                                  "adamw.betas=0.9,0.95", shown="none", nargs="+", metavar="METHOD.OPTION=VALUE",
                                  type=setting, action="extend")
    lr: float | None = option("optimizer", None, "peak learning rate of the matrices of attention and feed-forward",
                              shown=_RATE, type=real(0, ends="(]"))
    lr_others: float | None = option("optimizer", None, "peak learning rate of embedding, head and norms",
                                     shown=_OTHERS, type=real(0, ends="(]"))
    compare_lr: float | None = option("optimizer", None, "--lr of --compare", shown=_RATE, type=real(0, ends="(]"))
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

    rank: int | None = _method("rank", "rank of the projection", shown="dim // 4", type=whole(1), metavar="N")
    update_proj_gap: int | None = _method("update_proj_gap", "steps from one refresh to the next", type=whole(1),
                                          metavar="N")
    compare_update_proj_gap: int | None = _of_compare("update_proj_gap", type=whole(1), metavar="N")
    scale: float | None = _method("scale", "factor on the projected update; apollo takes its root",
                                  type=real(0, ends="(]"))
    compare_scale: float | None = _of_compare("scale", type=real(0, ends="(]"))
    proj_type: str | None = _method("proj_type", "side that is projected", choices=PROJ_TYPES)
    rule: str | None = _method("rule", "what is done with a projected gradient", choices=tuple(RULES))
    projector: str | None = _method("projector", "how a subspace is found", choices=PROJECTORS)
    compare_projector: str | None = _of_compare("projector", choices=PROJECTORS)
    reproject_factor: int | None = _method("reproject_factor", "changes of the basis from one search to the next",
                                           type=whole(1), metavar="N")
    energy: float | None = _method("energy", "share of the gradient that a subspace is to hold",
                                   type=real(0, 1, ends="(]"))
    min_rank: int | None = _method("min_rank", "smallest rank", type=whole(1), metavar="N")
    convergence: float | None = _method("convergence", "share of its first norm at which a gradient has faded",
                                        type=real(0, 1, ends="[)"))
    rho: float | None = _method("rho", "weight of the momentum in what the subspace follows", type=real(0, 1))
    eq5: str | None = _method("eq5", "gradient step on the basis: the published one, or one of a fixed length",
                              choices=("reference", "normalized"))
    moments: str | None = _method("moments", "what a refresh does to the moments", choices=("keep", "rotate"))
    limiter: float | None = _method("limiter", "largest growth of the scaled part's norm in one step, a factor",
                                    type=real(1))
    residual: str | None = _method("residual", "what the subspace leaves: as the paper or the authors' code has it",
                                   choices=("paper", "code"))
    scale_type: str | None = _method("scale_type", "what is scaled as one: a channel or the whole matrix",
                                     choices=("channel", "tensor"))
    scale_cap: float | None = _method("scale_cap", "largest factor of a channel, as a multiple of their median",
                                      type=real(1))
    subspace: str | None = _method("subspace", "what is projected, a part that is drawn anew at each refresh",
                                   choices=SUBSPACES)
    density: float | None = _method("density", "share that is at work, in place of --rank", type=real(0, 1))
    sign_scale: float | None = _method("sign_scale", "factor on the sign of the rest", type=real(0))
    active: int | None = _method("active", "layers that are trained at a time", type=whole(1), metavar="N")
    period: int | None = _method("period", "steps from one draw of layers to the next", type=whole(1), metavar="N")
    basis: str | None = _method("basis", "whose atoms are chosen", choices=(*BASES, AUTO_BASIS))
    norm_ord: int | None = _method("norm_ord", "what ranks atoms, sums of |.| or squares", choices=(1, 2), type=int)
    compare_norm_ord: int | None = _of_compare("norm_ord", choices=(1, 2), type=int)
    error_feedback: bool | None = _method("error_feedback", "whether the rest is kept", shown="yes", **YES_OR_NO)
    error_feedback_dtype: str | None = _method("error_feedback_dtype", "its storage", choices=MOMENT_DTYPES)
    momentum: float | None = _method("momentum", "what is kept of it after a step", type=real(0, 1, ends="[)"))
    nesterov: bool | None = _method("nesterov", "whether the gradient counts once more", shown="yes", **YES_OR_NO)
    ns_steps: int | None = _method("ns_steps", "steps of Newton and Schulz", type=whole(0, 99), metavar="N")
    ns_coefficients: tuple[float, float, float] | None = _method("ns_coefficients", "their polynomial", nargs=3,
        type=real(-100, 100), metavar=("A", "B", "C"), shown="3.4445 -4.775 2.0315")
    adjust_lr_fn: str | None = _method("adjust_lr_fn", "factor on the rate", shown=FACTORS[0], choices=FACTORS)
    fraction: float | None = _method("fraction", "share of the shorter side stepped", type=real(0, 1, ends="(]"))
    iterations: int | None = _method("iterations", "times that rows and columns are normalized", type=whole(1),
                                     metavar="N")
    kappa: int | None = _method("kappa", "steps from one draw of the sketch to the next", type=whole(1), metavar="N")
    cos_threshold: float | None = _method("cos_threshold", "mean cosine between subspaces from which on the gap grows",
                                          type=real(0))
    queue_size: int | None = _method("queue_size", "refreshes whose cosines are looked at together", type=whole(1),
                                     metavar="N")
    gamma: float | None = _method("gamma", "what the gap grows by, a factor", type=real(1))
    group_size: int | None = _method("group_size", "rows of a basis that share a scale", type=int, choices=GROUP_SIZES,
                                     metavar="N")
    moment_dtype: str | None = _method("moment_dtype", "storage of moments", choices=MOMENT_DTYPES)
    compare_moment_dtype: str | None = _of_compare("moment_dtype", choices=MOMENT_DTYPES)
    plain_moment_dtype: str | None = _method("plain_moment_dtype", "of those of embedding, head and norms",
                                             shown="as --moment-dtype", choices=MOMENT_DTYPES)
    rounding: str | None = _method("rounding", "of bfloat16 weights", choices=("nearest", "stochastic"))

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
    monitor_every: int | None = option("schedule", None, "steps between two records of what each layer does (of "
                                       "adamw and lisa none); 0: never", shown="steps // 50", type=whole(0),
                                       metavar="N")
    eval_batches: int = option("schedule", 16, "validation batches, always the same", type=whole(1))
    # fmt: on

    @property
    def runs(self) -> tuple[str, ...]:
        """The optimizers to train with, in order."""
        return (self.optimizer, *self.compare)

    @property
    def window(self) -> int:
        """Bytes of one training example: `seq_len` inputs and the byte after the last."""
        return self.seq_len + 1

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one optimizer step predicts."""
        return self.batch_size * self.accumulation * self.seq_len

    def home(self, run: str, name: str) -> str | None:
        """The field that holds the option `name` of one of `runs`; None where only `--set` can say it."""
        alone = f"compare_{name}" if len(self.compare) == 1 else None
        if name in TUNED[run]:
            return name if run == self.optimizer else alone
        return name if name not in PAIRED or run == next(r for r in self.runs if name in OWN[r]) else alone

    def source(self, run: str, name: str) -> str | None:
        """The field that decides the option `name` of one of `runs`; None where `--set` or its default does."""
        if (run, name) in read_settings(self.set):
            return None
        fields = (self.home(run, name), name if name in SHARED else None)
        return next((field for field in fields if field is not None and getattr(self, field) is not None), None)

    def tuned(self, run: str) -> dict[str, Any]:
        """`lr`, `lr_others`, `betas` and `weight_decay` of one of `runs`: those given, else those of `TUNED`."""
        given = {name: self._given(run, name) for name in TUNED[run]}
        given["lr_others"] = given["lr"] if given["lr_others"] is None else given["lr_others"]
        return {name: TUNED[run][name] if value is None else value for name, value in given.items()}

    def own(self, run: str) -> dict[str, Any]:
        """The options of one of `runs` that belong to its method, without `rank`: those given, else its defaults."""
        given = {name: self._given(run, name) for name in OWN[run]}
        return {name: OWN[run][name] if value is None else value for name, value in given.items()}

    def rank_of(self, run: str) -> int | None:
        """The rank of one of `runs`."""
        rank: int | None = self._given(run, "rank")
        return rank

    def _given(self, run: str, name: str) -> Any:
        field = self.source(run, name)
        return read_settings(self.set).get((run, name)) if field is None else getattr(self, field)

    def peak_lrs(self, run: str) -> tuple[float, float]:
        """Peak learning rates of one of `runs`: of the matrices of attention and feed-forward, and of the rest."""
        tuned = self.tuned(run)
        return tuned["lr"], tuned["lr_others"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists: what a round trip through JSON leaves as it is."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse, also of what older versions wrote. Raises TypeError for a field that does not exist."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in modern(values).items()}
        return cls(**plain)


def modern(values: dict[str, Any]) -> dict[str, Any]:
    """Options that an older version wrote, as this one would have: it compared one optimizer or None."""
    compare = values.get("compare", [])
    return {"set": [], **values, "compare": [compare] if isinstance(compare, str) else compare or []}


def read_settings(texts: tuple[str, ...]) -> dict[tuple[str, str], Any]:
    """By optimizer and option, what `--set` says; see `settings.read`."""
    return read(texts, TrainConfig)
