"""Optimizers that keep their state in a low-rank subspace of each weight's gradient (needs torch)."""
# ruff: noqa: E402  (what is missing must be said before it is imported)

from lowrank_core.extras import require_torch

require_torch(__name__)

from lowrank_core.memory import formula_state_bytes
from lowrank_core.memory.gradients import GradientBytes
from lowrank_core.optim.estimate import estimate_state_bytes
from lowrank_core.optim.groups import param_groups
from lowrank_core.optim.int8 import Int8Linear
from lowrank_core.optim.layer_plot import plot_layers
from lowrank_core.optim.layerwise import FusedBackward, fused_backward
from lowrank_core.optim.lisa import LISA
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.methods import METHODS
from lowrank_core.optim.methods.adarankgrad import AdaRankGradAdamW
from lowrank_core.optim.methods.apollo import ApolloAdamW
from lowrank_core.optim.methods.coap import CoapAdamW
from lowrank_core.optim.methods.dct import DCTAdamW
from lowrank_core.optim.methods.dion2 import Dion2
from lowrank_core.optim.methods.fira import FiraAdamW
from lowrank_core.optim.methods.flora import FloraAdamW
from lowrank_core.optim.methods.frugal import FrugalAdamW
from lowrank_core.optim.methods.galore import GaLoreAdamW
from lowrank_core.optim.methods.ldadam import LDAdamW
from lowrank_core.optim.methods.muon import Muon
from lowrank_core.optim.methods.qgalore import QGaLoreAdamW
from lowrank_core.optim.methods.scale import SCALE
from lowrank_core.optim.methods.sinkgd import SinkGD
from lowrank_core.optim.methods.trion import Trion
from lowrank_core.optim.monitor import Monitor
from lowrank_core.optim.state_file import load_state, save_state

__all__ = [
    "LISA",
    "METHODS",
    "SCALE",
    "AdaRankGradAdamW",
    "ApolloAdamW",
    "CoapAdamW",
    "DCTAdamW",
    "Dion2",
    "FiraAdamW",
    "FloraAdamW",
    "FrugalAdamW",
    "FusedBackward",
    "GaLoreAdamW",
    "GradientBytes",
    "Int8Linear",
    "LDAdamW",
    "LowRankOptimizer",
    "Monitor",
    "Muon",
    "QGaLoreAdamW",
    "SinkGD",
    "Trion",
    "estimate_state_bytes",
    "formula_state_bytes",
    "fused_backward",
    "load_state",
    "param_groups",
    "plot_layers",
    "save_state",
]
