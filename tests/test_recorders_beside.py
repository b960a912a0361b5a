"""Recorders beside what else is plugged in: they change nothing of it, and record it as it is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.interventions import Edit, Intervention, Step
from recovery_probe.recorders import EPISODE, STEP, Array, Layout, Recorder
from recovery_probe.sketch import ModuleSketches

INSTALLED = sorted(plugins.installed("recorders"))


@dataclass
class Everything(Intervention):
    """Acts at every moment there is."""

    name = "everything"

    share: float = 0.9

    def start(self, training: rp.Training) -> tuple[Edit, ...]:
        return tuple(
            Edit("blocks.1.hook_resid_pre", self.fade, during)
            for during in ("training", "evaluation")
        )

    def fade(self, tensor: torch.Tensor, *, hook: Any, moment: Any) -> torch.Tensor:
        return tensor * self.share

    def inputs(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        tokens = inputs["tokens"].clone()
        tokens[:, step.index % tokens.shape[1]] = 0
        return {**inputs, "tokens": tokens}

    def gradients(self, step: Step) -> None:
        for name, parameter in step.model.parameters.items():
            if "mlp" in name:
                parameter.grad *= self.share

    def weights(self, step: Step) -> None:
        with torch.no_grad():
            step.model.parameters["embed.weight"].mul_(0.999)


def test_recorders_change_nothing_beside_interventions(tmp_path: Path) -> None:
    def mean(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return tensor.mean()

    shape = {"epochs": 2, "model": {"architecture": "llama", "dropout": 0.1}}
    # Those that make no passes of their own, which are refused beside edits.
    every = [name for name in INSTALLED if not plugins.find("recorders", name).makes_passes]
    watched = rp.fit(
        tiny(recorders=every, **shape),
        tmp_path / "watched",
        interventions=[Everything()],
        hooks=[("blocks.*.hook_out", mean)],
    )
    alone = rp.fit(
        tiny(recorders=["checkpoints"], **shape), tmp_path / "alone", interventions=[Everything()]
    )
    beside = {"checkpoints", "live_report", "tensorboard", "wandb"}  # write nothing into the record
    assert {*watched.recorders} == {*every, "mean"} - beside
    assert np.array_equal(watched.losses, alone.losses)
    assert np.array_equal(watched.train_loss, alone.train_loss)
    weights, expected = watched.weights_at(10), alone.weights_at(10)
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    plain = rp.fit(tiny(recorders=[], **shape), tmp_path / "plain")
    assert not np.allclose(plain.train_loss, alone.train_loss)


def test_passes_of_a_recorders_own_are_refused_beside_edits(tmp_path: Path) -> None:
    class Passes(Recorder):
        name = "passes"
        makes_passes = True

        def start(self, training: rp.Training) -> Layout:
            self.training = training
            return Layout({"loss": Array(EPISODE, (), (), "loss of document 0", "nats")})

        def after_episode(self, episode: Any) -> Any:
            self.training.model.train(False)
            with torch.no_grad():
                return {"loss": self.training.losses(slice(1))[0]}

    def halved(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return tensor * 0.5

    class Slower(Intervention):
        name = "slower"

        def gradients(self, step: Step) -> None:
            for parameter in step.model.parameters.values():
                parameter.grad *= 0.5

    edit = [("blocks.0.hook_resid_post", halved)]
    none = tiny(epochs=1, recorders=[])
    for settings, hooks, name in (
        (tiny(epochs=1, recorders=["document_gradients"]), [], "document_gradients"),
        (none, [Passes], "passes"),
    ):
        said = rf"intervention edit changes activations.*recorder {name}.*--no-record {name}"
        with pytest.raises(rp.InputError, match=said):
            rp.fit(settings, tmp_path / "run", hooks=hooks, interventions=edit)
        assert not (tmp_path / "run").exists()
    # Where nothing is edited its passes are of the network that is trained.
    run = rp.fit(none, tmp_path / "run", hooks=[Passes], interventions=[Slower])
    np.testing.assert_allclose(run.recorder("passes").loss, run.losses[:, 0], rtol=1e-6)


OPTIMIZERS = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from recovery_probe import Optimizer


class Own(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.5


@dataclass
class Rated(Optimizer):
    name = "rated"
    # learning rate of the first step
    lr: float = 0.1

    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)


class Subclass(Rated):
    def make(self, parameters):
        return Own(parameters, lr=self.lr)


class After(Rated):
    def make(self, parameters):
        optimizer = super().make(parameters)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer


class Before(Rated):
    def make(self, parameters):
        optimizer = super().make(parameters)

        def halve(optimizer, args, kwargs):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5

        optimizer.register_step_pre_hook(halve)
        return optimizer


class Clips(Rated):
    def make(self, parameters):
        optimizer = super().make(parameters)
        optimizer.register_step_pre_hook(
            lambda *_: torch.nn.utils.clip_grad_norm_(parameters, 0.01) and None
        )
        return optimizer


class TwoGroups(Rated):
    def make(self, parameters):
        groups = [{"params": parameters[:3], "lr": 0.01}, {"params": parameters[3:]}]
        return torch.optim.SGD(groups, lr=self.lr)
"""


@pytest.mark.parametrize("kind", ["Rated", "Subclass", "After", "Before", "Clips", "TwoGroups"])
def test_updates_are_the_true_ones_whatever_the_optimizer(kind: str, tmp_path: Path) -> None:
    """Against the difference of the weights before and after every step."""
    (tmp_path / "mine.py").write_text(OPTIMIZERS)
    settings = tiny(
        epochs=1,
        steps=1,
        recorders=["gradients", "weight_deltas", "checkpoints"],
        checkpoints={"every": "episode"},
        optimizer={"name": f"{tmp_path / 'mine.py'}:{kind}", "lr": 0.2},
        model={"dtype": "float64"},
    )
    run = rp.fit(settings, tmp_path / "run")
    deltas = run.weight_deltas.load()
    weights = [run.model_at(k).parameters for k in range(6)]
    for step, (before, after) in enumerate(itertools.pairwise(weights)):
        moved = {n: after[n].detach() - before[n].detach() for n in before}
        sketched, norm = ModuleSketches(before, settings.sketch)(moved)
        np.testing.assert_allclose(deltas.norm[step], norm, rtol=1e-6, atol=1e-12)
        scale = float(sketched.norm())
        np.testing.assert_allclose(deltas.sketched[step], sketched, atol=1e-6 * scale)
        embed = float(moved["embed.weight"].norm())
        assert deltas.norm[step].sel(name="embed").item() == pytest.approx(embed, rel=1e-6)


SCHEDULE = """
from dataclasses import dataclass
import numpy as np
from recovery_probe import Schedule


@dataclass
class Uneven(Schedule):
    name = "uneven"
    # documents of the whole run
    episodes: int = 8

    def order(self, documents, epochs, rng):
        return np.resize([0, 0, 3, 1], self.episodes)
"""


def test_recorders_follow_an_uneven_schedule(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCHEDULE)
    settings = tiny(
        epochs=1,
        schedule={"kind": f"{tmp_path / 'mine.py'}:Uneven", "episodes": 8},
        weight_deltas={"every": "episode"},
        gradients={"every": "epoch"},
        recorders=[*INSTALLED],
        checkpoints={"every": "episode"},
    )
    run = rp.fit(settings, tmp_path / "run")
    assert run.schedule.values.tolist() == [0, 0, 3, 1, 0, 0, 3, 1]
    assert run.gradients.step.values.tolist() == [0, 15]  # an epoch is T episodes
    assert run.weight_deltas.document.values.tolist() == run.schedule.values.tolist()
    assert run.residual_stream.sizes[STEP] == 24
    assert run.recorder("token_losses").sizes[EPISODE] == 9
    start, end = run.model_at(0).parameters, run.model_at(8).parameters
    moved = {n: end[n].detach() - start[n].detach() for n in start}
    sketched, _ = ModuleSketches(start, settings.sketch)(moved)
    trajectory = run.weight_trajectory()[-1].values
    np.testing.assert_allclose(trajectory, sketched, atol=1e-4 * float(sketched.norm()))


SOURCE = """
from dataclasses import dataclass
import random
from recovery_probe import Source, Tokens


@dataclass
class Rows(Source):
    name = "rows"
    # ids below this
    top: int = 500

    def read(self, address):
        for i in range(20):
            draw = random.Random(f"{address} {i}")
            yield Tokens(f"row {i}", tuple(draw.randrange(1, self.top) for _ in range(10 + 3 * i)))
"""


def test_recorders_watch_documents_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    source = {"source": f"{tmp_path / 'mine.py'}:Rows", "min_tokens": 2, "tokens": 30}
    settings = tiny(epochs=1, recorders=INSTALLED, documents=source)
    run = rp.fit(settings, tmp_path / "run")
    lengths = run.record.length.values
    assert (lengths < 30).any()
    losses = run.recorder("token_losses").load()
    assert np.isfinite(losses.loss).sum("position").values.tolist() == [
        (lengths - 1).tolist()
    ] * len(losses.loss)
    np.testing.assert_allclose(losses.loss.astype("f8").mean("position"), run.losses, rtol=2**-11)
    assert (losses.token.values != "").sum(axis=1).tolist() == lengths.tolist()
    for name in run.recorders:
        assert not run.provenance["recorders"][name].get("rows_missing")
