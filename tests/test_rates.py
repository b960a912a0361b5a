"""The learning rate of every step, and when the optimizer forgets: against closed forms and plain
loops, resumed and replayed too."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model, plain_loop
from recovery_probe_analyses import pairwise_recovery
from test_training import Stops, assert_same, stopped

import recovery_probe as rp
from recovery_probe.sketch import ModuleSketches

T, E = 5, 3  # of `tiny`


class Rates(rp.Recorder):
    """The optimizer's rate, and how many steps it remembers, at the moment of each step."""

    name = "rates"

    def start(self, training: rp.Training) -> rp.Layout:
        self.training = training
        about = {"dims": (), "shape": (), "dtype": "float64"}
        return rp.Layout(
            {
                "lr": rp.Array("step", description="learning rate", **about),
                "remembered": rp.Array("step", description="steps since it was fresh", **about),
            }
        )

    def after_step(self, step: rp.Step) -> Any:
        optimizer = self.training.optimizer
        states = [state["step"] for state in optimizer.state.values() if "step" in state]
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        return {"lr": rate, "remembered": float(states[0]) if states else math.nan}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("per", ["step", "episode"])
@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_every_step_has_the_rate_of_its_index(
    decay: str, per: str, steps: int, tmp_path: Path
) -> None:
    chosen = {"name": "adam", "lr": 3e-3, "per": per, "decay": decay, "reset": "epoch"}
    settings = tiny(steps=steps, epochs=2, recorders=[], optimizer=chosen)
    run = rp.fit(settings, tmp_path / "run", hooks=[Rates])
    step, total = np.arange(2 * T * steps), 2 * T * steps
    expected = np.full(total, 3e-3 / (steps if per == "episode" else 1))
    if decay == "cosine":
        expected *= 0.5 * (1 + np.cos(np.pi * step / total))
    seen = run.recorder("rates")
    np.testing.assert_allclose(seen.lr, expected, rtol=1e-14)
    assert seen.lr[0] == 3e-3 / (steps if per == "episode" else 1)
    np.testing.assert_array_equal(seen.remembered, step % (T * steps) + 1)


@pytest.mark.parametrize("reset", ["never", "episode", "epoch"])
def test_an_epoch_is_what_the_schedule_says(reset: str, tmp_path: Path) -> None:
    """Two documents, and three that never come again: five episodes, of eight documents."""
    fresh = {"kind": "fresh", "fixed": 2, "new": 3}
    chosen = {"name": "adam", "reset": reset}
    settings = tiny(
        epochs=2, recorders=[], schedule=fresh, documents={"count": 8}, optimizer=chosen
    )
    seen = rp.fit(settings, tmp_path / "run", hooks=[Rates]).recorder("rates")
    every = {"never": 30, "episode": 3, "epoch": 15}[reset]
    np.testing.assert_array_equal(seen.remembered, np.arange(30) % every + 1)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"lr": 0.1, "per": "episode"},
        {"lr": 0.03, "momentum": 0.9, "per": "episode", "decay": "cosine", "reset": "epoch"},
    ],
    ids=["descent", "momentum"],
)
def test_losses_equal_a_plain_loops(optimizer: dict[str, Any], steps: int, tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "gpt_neox")
    settings = tiny(steps=steps, epochs=2, model={"source": str(folder)}, optimizer=optimizer)
    run = rp.fit(settings, tmp_path / "run")
    np.testing.assert_allclose(
        run.losses.values,
        plain_loop(folder, run),
        atol=1e-5,
        rtol=0,
    )


FALLING = {"per": "episode", "decay": "cosine", "reset": "epoch"}


@pytest.mark.parametrize(
    "optimizer",
    [
        {"lr": 0.2, "decay": "cosine"},
        {"lr": 0.1, "momentum": 0.9, **FALLING},
        {"name": "adam", "lr": 5e-3, **FALLING},
    ],
    ids=["descent", "momentum", "adam"],
)
def test_resumed_and_replayed_a_step_has_the_same_rate(
    optimizer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within an epoch; and replayed from within one."""
    settings = tiny(
        optimizer=optimizer,
        recorders=["gradients", "weight_deltas", "checkpoints"],
        checkpoints={"every": "4 episodes"},
    )
    whole = rp.fit(settings, tmp_path / "whole")
    assert whole.checkpoints == [0, 4, 8, 12, 15]
    run = stopped(settings, tmp_path / "run", monkeypatch)
    run.resume(hooks=[Stops])
    assert_same(run, whole)
    run.replay(hooks=[Rates], episodes=(9, 13))
    seen = run.recorder("rates")
    assert seen.attrs["replayed"]["agreed"].endswith("bit for bit")
    sharing = 3 if "per" in optimizer else 1
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(27, 39) / 45))
    np.testing.assert_allclose(seen.lr, optimizer["lr"] / sharing * falling, rtol=1e-13)


def test_a_run_whose_rate_falls_to_0_has_no_more_epochs(tmp_path: Path) -> None:
    settings = tiny(epochs=1, recorders=["checkpoints"], optimizer={"decay": "cosine"})
    run = rp.fit(settings, tmp_path / "run")
    before = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    with pytest.raises(rp.InputError, match=r"of 1 epochs \(optimizer\.decay\), .*train anew"):
        rp.fit(rp.changed(settings, epochs=2), run.path, resume=True)
    assert {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("optimizer", [{"decay": "cosine"}, {"per": "episode"}], ids=str)
def test_updates_from_gradients_have_the_steps_own_rate(
    optimizer: dict[str, Any], tmp_path: Path
) -> None:
    """Plain descent, whose updates are worked out from gradients, against the weights' differences
    over each step."""
    settings = tiny(
        epochs=1,
        steps=2,
        recorders=["weight_deltas"],
        optimizer=optimizer,
        model={"dtype": "float64"},
    )
    weights: list[dict[str, torch.Tensor]] = []

    class Weights(rp.Recorder):
        name = "weights"

        def start(self, training: rp.Training) -> rp.Layout:
            return rp.Layout()

        def before_step(self, step: rp.Step) -> None:
            own = step.model.parameters.items()
            weights.append({n: p.detach().clone() for n, p in own})

    run = rp.fit(settings, tmp_path / "run", hooks=[Weights])
    deltas = run.weight_deltas.load()
    for step, (before, after) in enumerate(itertools.pairwise(weights)):
        moved = {n: after[n] - before[n] for n in before}
        sketched, norm = ModuleSketches(before, settings.sketch)(moved)
        np.testing.assert_allclose(deltas.norm[step], norm, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(
            deltas.sketched[step], sketched, atol=1e-6 * float(sketched.norm())
        )


@pytest.mark.parametrize(("done", "episode"), [(10, 10), (15, 14)])
def test_pairs_are_trained_at_the_rate_of_the_next_episode(
    done: int, episode: int, tmp_path: Path
) -> None:
    """After the last one, at its own."""
    settings = tiny(
        recorders=["checkpoints"],
        model={"dtype": "float64"},
        optimizer={"lr": 0.5, "per": "episode", "decay": "cosine"},
    )
    run = rp.fit(settings, tmp_path / "run")
    found = pairwise_recovery.drops(run, done)
    model = run.model_at(done)
    inputs = rp.Training.at(run, done).inputs
    with torch.no_grad():
        before = model.losses(inputs).numpy()
    for m in range(3):
        lr = 0.5 / 3 * 0.5 * (1 + math.cos(math.pi * (3 * episode + m) / 45))
        model.bridge.zero_grad()
        model.losses({n: v[:1] for n, v in inputs.items()}).sum().backward()
        with torch.no_grad():
            for weight in model.parameters.values():
                weight -= lr * weight.grad
    with torch.no_grad():
        expected = before - model.losses(inputs).numpy()
    assert expected[0] > 1e-4
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-9)


OWN_RATES = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from recovery_probe import Optimizer


@dataclass
class Scheduled(Optimizer):
    name = "scheduled"

    def make(self, parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return optimizer


class Still(torch.optim.Optimizer):
    def step(self, closure=None):
        return None


@dataclass
class Without(Optimizer):
    name = "without"

    def make(self, parameters):
        return Still(parameters, {})
"""


@pytest.mark.parametrize("kind", ["Scheduled", "Without"])
@pytest.mark.parametrize("wanted", [{"decay": "cosine"}, {"per": "episode"}], ids=str)
def test_an_optimizer_that_has_rates_of_its_own_is_left_them(
    kind: str, wanted: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(OWN_RATES)
    chosen = {"name": f"{tmp_path / 'mine.py'}:{kind}"}
    settings = tiny(epochs=1, recorders=[], optimizer={**chosen, **wanted})
    with pytest.raises(rp.InputError, match=r"rates of its own: leave optimizer\.per"):
        rp.fit(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    rp.fit(rp.changed(settings, optimizer={"decay": "none", "per": "step"}), tmp_path / "run")


def test_the_run_says_what_its_optimizer_and_its_network_are(tmp_path: Path) -> None:
    settings = tiny(
        epochs=1,
        recorders=[],
        optimizer={"lr": 0.1, "momentum": 0.5, "nesterov": True, **FALLING},
        model={"mlp_ratio": 2.5, "init": "normal"},
    )
    said = rp.fit(settings, tmp_path / "run").summary()
    assert said["optimizer"] == (
        "sgd, lr 0.1, momentum 0.5, nesterov True, lr shared by the steps of an episode, cosine to "
        "0, state reset each epoch"
    )
    assert said["model"] == (
        "gpt_neox, 2 blocks, 32 wide, its MLP 2.5 times that, random init (normal)"
    )
