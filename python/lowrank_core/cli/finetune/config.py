"""All that decides what `lowrank-core finetune` computes, and the methods that it knows. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowrank_core.cli.defaults import listed
from lowrank_core.cli.options import PRECISIONS, option, path, real, whole
from lowrank_core.memory.storage import MOMENT_DTYPES

CLASSIFICATION, CAUSAL_LM = TASKS = ("classification", "causal-lm")
FISHERS = ("auto", "full", "lumped", "monte_carlo")
# Of each method: its peak learning rate, of a filter the factor on its steps; and the options of it alone.
METHODS: dict[str, tuple[float, dict[str, Any]]] = {
    "lora": (1e-3, {}),
    "lora+": (3e-4, {"ratio": 16.0}),
    "scaled": (1e-3, {"reg": 1e-2, "moment_dtype": "auto"}),
    "lora-pro": (1e-3, {"moments": "factors", "moment_dtype": "auto"}),
    "allora": (1e-3, {"eta": 10.0, "moment_dtype": "auto"}),
    "adalora": (3e-3, {"init_rank": None}),
    "geolora": (1e-3, {"max_rank": None, "tol": 0.01}),
    "loko": (1.0, {"p0": None, "process_noise": 0.0, "kl_limit": 0.1, "fisher": "monte_carlo", "draws": 4}),
}
MOMENTS = ("factors", "full")
FILTERS = ("loko",)  # which take no gradient, so that none is clipped, decayed, scaled or added up, and no schedule
ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}  # of all methods but filters
_DEFAULTS = ", ".join(f"{lr:g} of {name}" for name, (lr, _) in METHODS.items())


def _own(name: str, text: str, *, shown: str | None = None, **parse: Any) -> Any:
    """An option of some methods; None is their default."""
    takers = takers_of(name)
    default = METHODS[takers[0]][1][name]
    return option("method", None, f"{text}, of {listed(takers)}", shown=shown or str(default), **parse)


def takers_of(name: str) -> tuple[str, ...]:
    """The methods that have the option of the field `name`."""
    return tuple(method for method, (_, own) in METHODS.items() if name in own)


# fmt: off
@dataclass(frozen=True)
class FinetuneConfig:
    """The options of `lowrank-core finetune` that decide its numbers; None means "decided by the others"."""

    model: str | None = option("model", None, "folder with the pretrained model and its tokenizer, or a GGUF file in "
                               "such a folder", shown="none; it must be given", type=path, metavar="PATH")
    task: str = option("data", CLASSIFICATION, "what is learnt", choices=TASKS)
    data: tuple[str, ...] = option("data", (), "CSV, TSV or JSONL files; or, for causal-lm, files or folders of text",
                                   shown="docstrings of Python's standard library, labelled by package", nargs="+",
                                   metavar="PATH", type=path)
    text_column: str = option("data", "text", "column of the texts", type=path, metavar="NAME")
    label_column: str = option("data", "label", "column of the labels", type=path, metavar="NAME")
    val_fraction: float = option("data", 0.1, "share of the data held out for validation", type=real(0, 1, ends="()"))
    seq_len: int = option("data", 128, "tokens of a text that count; of a window of causal-lm", type=whole(2))

    method: str = option("method", "lora", "what trains the adapter", choices=tuple(METHODS))
    rank: int = option("method", 8, "rank at the start; of adalora the mean rank at the end", type=whole(1))
    alpha: float | None = option("method", None, "scale of the adapter times its rank", shown="twice the rank",
                                 type=real(0, ends="(]"))
    lr: float | None = option("method", None, "peak learning rate; of loko a factor on its steps", shown=_DEFAULTS,
                              type=real(0, ends="(]"))
    weight_decay: float | None = option("method", None, "decoupled decay of what is trained; loko has none",
                                        shown="0", type=real(0))
    betas: tuple[float, float] | None = option("method", None, "decay of the two moments; loko has none", nargs=2,
                                               type=real(0, 1, ends="[)"), metavar=("B1", "B2"),
                                               shown=" ".join(map(str, ADAM["betas"])))
    eps: float | None = option("method", None, "Adam's epsilon; loko has none", shown=str(ADAM["eps"]),
                               type=real(0, ends="(]"))
    clip: float | None = option("method", None, "largest gradient norm; 0 turns clipping off; loko has none", shown="1",
                                type=real(0))
    ratio: float | None = _own("ratio", "learning rate of B over that of A", type=real(0, ends="(]"))
    reg: float | None = _own("reg", "damping of the Gram matrices", type=real(0, ends="(]"))
    moments: str | None = _own("moments", "what Adam keeps: moments of the factors, or of the whole weight",
                               choices=MOMENTS)
    moment_dtype: str | None = _own("moment_dtype", "storage of moments", choices=MOMENT_DTYPES)
    eta: float | None = _own("eta", "factor on the gradient of a row of zeros", type=real(0, ends="(]"))
    init_rank: int | None = _own("init_rank", "rank of each layer at the start", shown="3/2 of --rank", type=whole(1),
                                 metavar="N")
    max_rank: int | None = _own("max_rank", "largest rank of a layer", shown="twice --rank", type=whole(1), metavar="N")
    tol: float | None = _own("tol", "norm that a step may cut off, as a share", type=real(0, 1, ends="[)"))
    p0: float | None = _own("p0", "variances at the start", shown="by norms of factors and weights",
                            type=real(0, ends="(]"))
    process_noise: float | None = _own("process_noise", "share of p0 that is added in each step", type=real(0))
    kl_limit: float | None = _own("kl_limit", "how far predictions may move in one step", type=real(0, ends="(]"))
    fisher: str | None = _own("fisher", "which rows of the curvature are observed", choices=FISHERS)
    draws: int | None = _own("draws", "rows of monte_carlo, each a backward pass", type=whole(1), metavar="N")

    steps: int = option("schedule", 300, "optimizer steps; may grow when a run is resumed", type=whole(1))
    batch_size: int = option("schedule", 16, "samples of a forward pass", type=whole(1))
    accumulation: int = option("schedule", 1, "forward passes of a step; of loko 1", type=whole(1))
    warmup: int | None = option("schedule", None, "steps of linear warm-up", shown="steps // 10, of loko 0",
                                type=whole(0), metavar="N")
    min_lr_ratio: float | None = option("schedule", None, "where the cosine ends, as a share of lr",
                                        shown="0.1, of loko 1", type=real(0, 1))
    precision: str = option("schedule", "fp32", "bf16: the pretrained weights, what is trained stays in float32; "
                            "amp-...: autocast", choices=PRECISIONS)
    seed: int = option("schedule", 0, "decides the first values, the batches and dropout", type=whole(0))
    eval_every: int | None = option("schedule", None, "steps between two validations", shown="steps // 10",
                                    type=whole(1), metavar="N")
    eval_samples: int = option("schedule", 500, "held-out samples that are looked at, always the same", type=whole(1))
    # fmt: on

    @property
    def runs(self) -> tuple[str, ...]:
        """The one method."""
        return (self.method,)

    @property
    def monitor_every(self) -> None:
        """Ranks are in metrics.jsonl; there is no file of layers."""
        return None

    @property
    def bytes_per_step(self) -> int:
        """Samples of a step, by which a run counts its speed."""
        return self.batch_size * self.accumulation

    def peak_lrs(self, run: str) -> tuple[float, float]:
        """The peak learning rate, of all that is trained."""
        lr = METHODS[run][0] if self.lr is None else self.lr
        return lr, lr

    def adam(self) -> dict[str, Any]:
        """`ADAM`, or what was given."""
        given = {name: getattr(self, name) for name in ADAM}
        return {name: ADAM[name] if value is None else value for name, value in given.items()}

    def own(self) -> dict[str, Any]:
        """The options of the method alone: those given, else its defaults."""
        defaults = METHODS[self.method][1]
        given = {name: getattr(self, name) for name in defaults}
        return {name: defaults[name] if value is None else value for name, value in given.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FinetuneConfig:
        """The inverse. Raises TypeError for a field that does not exist."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
