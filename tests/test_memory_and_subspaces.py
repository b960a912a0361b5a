"""The experiments `remove_subspace` and `optimizer_memory`, on tiny networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny, training
from explained import said
from recovery_probe_analyses.optimizer_memory import OptimizerMemory
from recovery_probe_analyses.remove_subspace import RemoveSubspace
from safetensors.numpy import load_file

import recovery_probe as rp
from recovery_probe.analyze import estimate
from recovery_probe.cli import main
from recovery_probe.experiments.conduct import conduct
from recovery_probe.train.plan import Begins, Point
from recovery_probe.training import Training

T = 5
ADAM, MOMENTUM = {"name": "adam", "lr": 0.01}, {"name": "sgd", "lr": 0.1, "momentum": 0.5}
ARMS = ("same", "shared-1", "shared-2", "placebo-1-0", "placebo-2-0", "isotropic")
TWO = {"ranks": (1, 2), "draws": 1}


def origin(path: Path, **changes: Any) -> rp.Run:
    """One block; with six steps some of what its documents forget comes back from epoch 3 on."""
    values = {"epochs": 3, "steps": 2, "checkpoints": {"every": "epoch"}, **changes}
    documents = {"count": T, "tokens": 12, "min_tokens": 12}
    return rp.fit(tiny(documents=documents, model={"depth": 1}, **values), path)


@pytest.fixture(scope="module")
def removed(tmp_path_factory: pytest.TempPathFactory) -> tuple[rp.Run, dict[str, Any]]:
    """A run, the experiment conducted, and what it found."""
    run = origin(tmp_path_factory.mktemp("removed") / "run", epochs=4, steps=6)
    return run, conduct([RemoveSubspace(**TWO)], run)["remove_subspace"]


def arm(run: rp.Run, name: str, experiment: str = "remove_subspace") -> rp.Run:
    return rp.open_run(run.path / "experiments" / experiment / name)


def by_hand(run: rp.Run) -> float:
    """The score of an arm, in loops."""
    losses, schedule = run.losses.values, list(run.schedule.values)
    curve = np.zeros(T)
    for k in range(T):
        first = schedule.index(k)
        for age in range(1, T + 1):
            curve[age - 1] += losses[first + age, k] / T
    top = curve.max()
    return float((top - curve[-1]) / (top - curve[0]))


def of(found: dict[str, Any], name: str, **places: Any) -> dict[str, Any]:
    (one,) = (e for e in found["estimates"][name] if places.items() <= e.items())
    return one


def names(run: rp.Run) -> list[str]:
    return list(Training.at(run, run.checkpoints[0]).model.parameters)


def flat(weights: dict[str, Any], order: list[str]) -> np.ndarray:
    return np.concatenate([np.asarray(weights[n], dtype=float).ravel() for n in order])


def rows(tensors: dict[str, np.ndarray], order: list[str]) -> np.ndarray:
    return np.concatenate([tensors[n].reshape(len(tensors[n]), -1) for n in order], axis=1)


def directions(run: rp.Run, name: str) -> dict[str, np.ndarray]:
    return load_file(arm(run, name).config.project.directions)


def test_numbers_are_those_of_the_arms(removed: tuple[rp.Run, dict[str, Any]]) -> None:
    run, found = removed
    hand = {name: by_hand(arm(run, name)) for name in ARMS}
    for name in ARMS:
        score = of(found, "score", arm=name, reading="curve")
        assert score["value"] == pytest.approx(hand[name], rel=1e-4, abs=1e-5)
        left = of(found, "left", arm=name)
        assert left["null"] == 1
        assert left["value"] == pytest.approx(hand[name] / hand["same"], rel=1e-4, abs=1e-5)
    assert hand["same"] > 0.1
    for r in (1, 2):
        beyond = (hand[f"placebo-{r}-0"] - hand[f"shared-{r}"]) / hand["same"]
        assert of(found, "beyond", rank=r)["value"] == pytest.approx(beyond, rel=1e-4, abs=1e-5)
    assert of(found, "left", arm="isotropic")["value"] == pytest.approx(1, abs=0.02)
    # What the run did itself.
    assert arm(run, "same").provenance["begins"]["episodes_done"] == 3 * T
    assert np.array_equal(arm(run, "same").losses.values[: T + 1], run.losses.values[3 * T :])
    assert f"gradients of {T + 2} documents after {2 * T} episodes" in found["verdict"]


def test_shared_directions_are_those_of_autograd(removed: tuple[rp.Run, dict[str, Any]]) -> None:
    run, _ = removed
    before, order = Training.at(run, 2 * T), names(run)
    before.model.train(False)
    gradients = []
    for k in range(T + 2):
        before.model.bridge.zero_grad()
        (loss,) = before.losses(slice(k, k + 1))
        loss.backward()
        each = {n: p.grad.numpy() for n, p in before.model.parameters.items()}
        gradients.append(flat(each, order))
    unit = np.array([g / np.linalg.norm(g) for g in gradients])
    expected = np.linalg.svd(unit, full_matrices=False)[2][:2]
    ours = rows(directions(run, "shared-2"), order)
    assert np.allclose(np.abs(ours @ expected.T), np.eye(2), atol=1e-3)
    assert np.allclose(rows(directions(run, "shared-1"), order), ours[:1], atol=1e-6)


def test_energies_are_those_of_the_updates(
    removed: tuple[rp.Run, dict[str, Any]], tmp_path: Path
) -> None:
    """Those of `same`'s first epoch, of checkpoints after each of its episodes."""
    run, _ = removed
    settings = rp.changed(
        arm(run, "same").config, recorders=["checkpoints"], checkpoints={"every": "episode"}
    )
    watched = rp.fit([Point(tmp_path / "watched", settings, begins=Begins(run.path, 3 * T))])
    order = names(run)
    weights = [Training.at(run, 3 * T)] + [Training.at(watched, k + 1) for k in range(T)]
    path = [flat({n: p.detach() for n, p in w.model.parameters.items()}, order) for w in weights]
    updates = np.diff(path, axis=0)
    span = np.linalg.qr(updates.T)[0]
    made = json.loads((arm(run, "same").path.parent / "directions.json").read_text())["arms"]
    for name in ARMS[1:]:
        ours = rows(directions(run, name), order)
        basis = np.linalg.qr(ours.T)[0]
        share = ((updates @ basis) ** 2).sum() / (updates**2).sum()
        assert made[name]["removed"] == pytest.approx(share, rel=1e-3)
        if name.startswith("placebo"):
            wanted = made[f"shared-{name.split('-')[1]}"]["removed"]
            assert share == pytest.approx(wanted, rel=1e-3)
            outside = np.linalg.norm(ours - ours @ span @ span.T, axis=1)
            assert np.allclose(outside[:-1], 0, atol=1e-3)
    assert made["isotropic"]["removed"] < 0.001
    assert made["shared-2"]["removed"] > 0.01


def test_nothing_moves_along_what_is_taken_out(removed: tuple[rp.Run, dict[str, Any]]) -> None:
    run, _ = removed
    one, order = arm(run, "shared-2"), names(run)
    assert (one.config.project.of, one.config.project.keep_norm) == ("update", True)
    ends = [
        flat({n: p.detach() for n, p in m.parameters.items()}, order)
        for m in (run.saved_model(3 * T), one.model_at(2 * T))
    ]
    moved = ends[1] - ends[0]
    along = np.linalg.norm(rows(directions(run, "shared-2"), order) @ moved)
    assert along < 1e-3 * np.linalg.norm(moved)


def test_stopped_it_goes_on_to_the_same(removed: tuple[rp.Run, dict[str, Any]]) -> None:
    run, found = removed
    before = {name: arm(run, name).losses.values for name in ARMS}
    files = sorted((arm(run, "same").path.parent / "directions").iterdir())
    shutil.rmtree(arm(run, "isotropic").path)
    killed = arm(run, "placebo-2-0").path
    training(killed)["rows_committed"][...] = 3
    provenance = json.loads((killed / "provenance.json").read_text())
    (killed / "provenance.json").write_text(json.dumps(provenance | {"status": "running"}))
    again = conduct([RemoveSubspace(**TWO)], run)["remove_subspace"]
    assert again == found
    assert all(np.array_equal(arm(run, n).losses.values, before[n]) for n in ARMS)
    # Made anew they are the same, by the names that tell what is in them.
    folder = arm(run, "same").path.parent
    folder.rename(folder.with_name("aside"))
    RemoveSubspace(**TWO).prepare(run)
    assert sorted((folder / "directions").iterdir()) == files
    shutil.rmtree(folder)
    folder.with_name("aside").rename(folder)


def test_of_other_settings_it_is_another(removed: tuple[rp.Run, dict[str, Any]]) -> None:
    run, _ = removed
    with pytest.raises(rp.InputError, match=r"other settings of the experiment \(ranks\).* remove"):
        conduct([RemoveSubspace(ranks=(1,), draws=1)], run)
    with pytest.raises(rp.InputError, match=r"gradients_after, documents"):
        conduct([RemoveSubspace(ranks=(1, 2), draws=1, of="held_out")], run)


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = origin(tmp_path / "run", epochs=1)
    with pytest.raises(rp.Missing, match=r"2 held-out documents .*ranks = \(1, 2, 4\)"):
        conduct([RemoveSubspace()], run)
    with pytest.raises(rp.Missing, match="no checkpoint at the end of an epoch before"):
        conduct([RemoveSubspace(of="earlier")], run)
    with pytest.raises(rp.Missing, match="not trained yet"):
        RemoveSubspace(ranks=(1,), draws=1)(run)
    main(["experiment", "remove_subspace", str(run.path), "--plan", "--ranks", "1", "2"])
    told = capsys.readouterr().err
    assert f"8 runs to train from checkpoints, {8 * 2 * T} episodes" in told
    # Directions in float32: 1 + 2 shared, 2 of all weights, two placebos of each, at most T.
    bytes_ = 4 * run.provenance["parameters"] * (1 + 2 + 2 + 4 * T)
    assert f"at most {bytes_ / 1e6:.1f} MB on disk" in told
    assert not (run.path / "experiments").exists()
    twice = origin(tmp_path / "frozen", epochs=1, interventions=["freeze"], freeze={"first": 1})
    # What is held fixed is in no direction.
    RemoveSubspace(ranks=(1,), draws=1).prepare(twice)
    (file,) = (twice.path / "experiments/remove_subspace/directions").glob("shared-1-*")
    assert not [n for n in load_file(file) if n.startswith("blocks.0.")]


# --- optimizer_memory


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    out = tmp_path_factory.mktemp("remembering") / "run"
    return origin(out, steps=6, optimizer=MOMENTUM, recorders=["checkpoints", "weight_deltas"])


def test_memory_kept_and_reset(remembering: rp.Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(["experiment", "optimizer_memory", str(remembering.path), "--after", "1"])
    verdict = capsys.readouterr().out
    found = json.loads((remembering.path / "analyses/summary.json").read_text())["optimizer_memory"]
    assert found["verdict"] in verdict
    kept, reset, once = (
        arm(remembering, name, "optimizer_memory")
        for name in ("kept", "reset_episode", "reset_once")
    )
    assert np.array_equal(kept.losses.values, remembering.losses.values[T:]), (
        "as the run itself went on"
    )
    # Both begin afresh; after an episode the one that was reset once remembers it.
    assert np.array_equal(once.losses.values[:2], reset.losses.values[:2])
    assert not np.array_equal(once.losses.values[2], reset.losses.values[2])
    assert not np.array_equal(once.losses.values[1], kept.losses.values[1])
    for one, name in ((kept, "kept"), (reset, "reset_episode"), (once, "reset_once")):
        score = of(found, "score", arm=name, reading="curve")
        assert score["value"] == pytest.approx(by_hand(one), rel=1e-4, abs=1e-5)
    dataset = OptimizerMemory(after=1)(remembering)
    lengths = [np.linalg.norm(a.weight_deltas.norm.values, axis=1).mean() for a in (kept, reset)]
    assert dataset.step_size.sel(arm="reset_episode") == pytest.approx(lengths[1] / lengths[0])
    assert "times as long" in found["verdict"]
    with pytest.raises(rp.InputError, match="made with other settings"):
        OptimizerMemory(after=2)(remembering)


ECHO = """
from dataclasses import dataclass
import torch
from recovery_probe.optimizers import Optimizer

class Echoing(torch.optim.Optimizer):
    # Plain descent, and once more what was done a cycle ago on the document that comes next.
    def __init__(self, parameters, lr, ahead, cycle):
        super().__init__(parameters, {"lr": lr, "ahead": ahead, "cycle": cycle})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state, own = self.state[p], -group["lr"] * p.grad
                if not state:
                    state["done"], state["past"] = 0, p.new_zeros(group["cycle"], *p.shape)
                n, cycle = state["done"], group["cycle"]
                p += own + 0.7 * state["past"][(n + group["ahead"]) % cycle]
                state["past"][n % cycle] = own
                state["done"] = n + 1

@dataclass
class Echo(Optimizer):
    name = "echo"
    lr: float = 0.1
    ahead: int = 6
    cycle: int = 96

    def make(self, parameters):
        return Echoing(parameters, self.lr, self.ahead, self.cycle)
"""


def test_recovery_that_is_memory_is_told_from_the_networks_own(tmp_path: Path) -> None:
    """An optimizer that does again, an episode before a document's turn, what it did for it a cycle
    ago."""
    file = tmp_path / "echo.py"
    file.write_text(ECHO)
    documents = {"count": 16, "tokens": 12, "min_tokens": 12}
    own = {"epochs": 4, "steps": 6, "optimizer": {"name": f"{file}:Echo"}}
    settings = tiny(documents=documents, model={"depth": 1}, **own)
    run = rp.fit(settings, tmp_path / "run")
    conduct([OptimizerMemory()], run)
    found = OptimizerMemory()(run)
    assert said("H6", optimizer_memory=found) == "supported"
    kept = estimate.get(found, "score", arm="kept", reading="curve")
    assert kept.value > 0.2


def test_without_memory_nothing_is_trained(tmp_path: Path) -> None:
    plain = origin(tmp_path / "plain", epochs=1)
    found = conduct([OptimizerMemory()], plain)["optimizer_memory"]
    assert "sgd, as it was set, has no state" in found["verdict"]
    assert of(found, "left")["value"] == of(found, "left")["null"] == 1
    assert not (plain.path / "experiments").exists()
    always = origin(tmp_path / "always", epochs=1, optimizer={**ADAM, "reset": "episode"})
    experiment = OptimizerMemory()
    assert not experiment.arms(always)
    assert "resets its optimizer at each episode" in experiment.verdict(experiment(always))
    # One that is reset at each epoch begins afresh: no arm of its own.
    run = origin(tmp_path / "x", epochs=1, optimizer={**ADAM, "reset": "epoch"})
    assert list(experiment.arms(run)) == ["kept", "reset_episode"]
