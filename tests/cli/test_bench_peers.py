"""The optimizers of other packages in `bench step`: set up as ours, and missed by a few words."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
import torch
from lowrank_core.cli.bench import peers
from lowrank_core.cli.bench.entry import started
from lowrank_core.cli.bench.field import find_rival, rivals_of
from lowrank_core.cli.bench.peers import PEERS, Peer, tried_out
from lowrank_core.cli.bench.rivals import SELDOM, Rival, gradients, parameters

SHAPES = [(48, 32), (32, 48)]


class Descent(torch.optim.Optimizer):
    """Plain gradient descent, whatever else it is told."""

    def __init__(self, params, lr, **keys):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(param.grad)


class Spoiling(Descent):
    """Leaves other gradients than it found."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.mul_(2)


def fake(monkeypatch, name: str, **classes) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for key, value in classes.items():
        setattr(sys.modules[name], key, value)


def test_who_cannot_take_part_is_told_why(monkeypatch, tmp_path):
    (tmp_path / "broken_peer.py").write_text("raise OSError('libfoo.so is missing')")
    (tmp_path / "needy_peer.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    fake(monkeypatch, "old_peer", Thing=Descent)

    def wrong(module, params, rank):
        raise KeyError("a key of another version")

    makes = {"absent_peer.optim": None, "broken_peer": None, "needy_peer": None, "old_peer": wrong}
    told = {module: tried_out(Peer(module, module, module, make, "galore")) for module, make in makes.items()}
    assert told == {
        "absent_peer.optim": "not installed",
        "broken_peer": "not importable: OSError: libfoo.so is missing",
        "needy_peer": "not importable: ModuleNotFoundError: No module named 'no_such_package'",
        "old_peer": "cannot step here: KeyError: 'a key of another version'",
    }
    monkeypatch.setattr(peers, "PEERS", tuple(Peer(name, name, name, make, None) for name, make in makes.items()))
    found, absent = rivals_of(["scale"], with_peers=True)
    assert absent == told and [rival.name for rival in found if not rival.ours] == ["fused AdamW"]
    with pytest.raises(LookupError):
        monkeypatch.setattr("lowrank_core.cli.bench.field.PEERS", peers.PEERS)
        find_rival("old_peer", None)


def test_absence_is_printed(cli, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", (Peer("somebody", "no-such", "no_such_package", lambda *_: None, None),))
    monkeypatch.setattr("lowrank_core.cli.bench.peak.peak_of", lambda *_: None)
    from lowrank_core.cli.bench.shapes import MODELS
    from lowrank_core.cli.presets import Sizes

    monkeypatch.setitem(MODELS, "small", Sizes(32, 48, 1, 100))
    threads = torch.get_num_threads()
    done = cli(
        "bench", "step", "--shapes", "small", "--rank", 8, "--rounds", 1, "--threads", 1, "--no-memory", "--methods",
        "scale",
    )  # fmt: skip
    torch.set_num_threads(threads)
    assert done.code == 0 and re.search(r"^not measured: somebody \(not installed\)$", done.out, re.MULTILINE)


def test_gradients_are_kept_from_who_changes_them(monkeypatch):
    fake(monkeypatch, "spoiling", Thing=Spoiling)
    fake(monkeypatch, "gentle", Thing=Descent)
    rivals = [
        tried_out(Peer(name, name, name, lambda module, params, rank: module.Thing(params, 1e-3), None))
        for name in ("spoiling", "gentle")
    ]
    assert [isinstance(rival, Rival) and rival.spoils for rival in rivals] == [True, False]
    grads, before = gradients(SHAPES), gradients(SHAPES)
    for rival in rivals:
        started(rival, SHAPES, grads, 4, lambda: None)
    assert all(map(torch.equal, grads, before))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_adapter_asks_for_what_ours_have(peer, monkeypatch):
    """Rank, gap and scale reach the packages by the names that they have for them."""
    classes = ("GaLoreAdamW", "QGaLoreAdamW8bit", "APOLLOAdamW", "FiraAdamW", "GaLore", "Fira", "APOLLO", "Muon")
    module = ModuleType("peer")
    for name in (*classes, "AdamW8bit"):
        setattr(module, name, Descent)
    optimizer = peer.build(module, parameters(SHAPES), 16)
    (group,) = optimizer.param_groups
    if peer.method in ("galore", "qgalore", "fira", "apollo"):
        assert group["rank"] == (1 if "mini" in peer.name else 16)
        assert group["update_proj_gap"] == SELDOM
        assert group["proj_type"] == "std"
        scale = {"galore": 0.25, "qgalore": 0.25, "fira": 0.25}.get(peer.method, 128 if "mini" in peer.name else 1.0)
        assert group["alpha" if peer.package == "fira" else "scale"] == scale


def test_installed_peers_step():
    """Whichever is installed and fits takes a step that passes the check."""
    found, _ = peers.peers(["galore", "qgalore", "fira", "apollo", "muon"])
    for rival in found:
        assert started(rival, SHAPES, gradients(SHAPES), 8, lambda: None).state > 0
        assert re.match(r"[\w-]+ (\d|\(version)", rival.source)
