"""`Training`: begun, taken up, put back; and a run that goes on where it was stopped."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import recovery_probe as rp
from recovery_probe.record.writer import Writer
from recovery_probe.testing import toy_settings as tiny

STOP = 12  # episodes, in the middle of an epoch of five: the last checkpoint is after 10


class Stops(rp.Recorder):
    name = "stops"
    armed = True

    def start(self, training: rp.Training) -> rp.Layout:
        return rp.Layout()

    def before_step(self, step: rp.Step) -> None:
        if self.armed and step.episode == STOP:
            raise KeyboardInterrupt


def stopped(settings: rp.Settings, path: Path, monkeypatch: pytest.MonkeyPatch) -> rp.Run:
    """Interrupted in the middle of an episode; what goes on has the same hook, and is not."""
    monkeypatch.setattr(Stops, "armed", True)
    with pytest.raises(rp.Interrupted, match=f"stopped after {STOP} of 15 episodes"):
        rp.fit(settings, path, hooks=[Stops])
    monkeypatch.setattr(Stops, "armed", False)
    return rp.open_run(path)


def assert_same(run: rp.Run, whole: rp.Run) -> None:
    """Bit for bit, all that was recorded, and every checkpoint."""
    assert np.array_equal(run.losses, whole.losses)
    assert np.array_equal(run.train_loss, whole.train_loss)
    assert run.recorders == whole.recorders
    for name in whole.recorders:
        assert run.recorder(name).load().identical(whole.recorder(name).load()), name
    assert run.checkpoints == whole.checkpoints
    for done in whole.checkpoints:
        one, other = (
            load_file(r.path / f"checkpoints/episodes-{done:05d}/model.safetensors")
            for r in (run, whole)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    pair: rp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last checkpoint; what was trained after it is trained again, in its place."""
    run = stopped(pair.config, tmp_path / "run", monkeypatch)
    assert run.status == "interrupted"
    assert np.isnan(run.losses[STOP + 1 :]).all()
    again = run.resume(hooks=[Stops])
    assert again is run
    again.check()
    assert again.status == "complete"
    assert not (run.path / "lock").exists()
    assert_same(again, pair)
    costs = again.provenance["recorders"]
    assert not [name for name in costs if "rows_missing" in costs[name]]


def test_what_is_drawn_in_an_episode_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, an optimizer that remembers within an episode, updates recorded by the epoch."""
    settings = tiny(
        model={"architecture": "llama", "dropout": 0.2},
        optimizer={"name": "adam", "lr": 1e-3, "reset": True},
        weight_deltas={"every": "epoch"},
        recorders=["weight_deltas", "gradients", "checkpoints"],
    )
    whole = rp.fit(settings, tmp_path / "whole")
    for lost in ((), (10,), (10, 5, 0)):
        run = stopped(settings, tmp_path / f"stopped-{len(lost)}", monkeypatch)
        for done in lost:
            shutil.rmtree(run.path / "checkpoints" / f"episodes-{done:05d}")
        assert_same(run.resume(hooks=[Stops]), whole)


def test_a_training_taken_up_is_the_run_as_it_was(pair: rp.Run) -> None:
    for done in pair.checkpoints:
        training = rp.Training.at(pair, done)
        assert training.done == done
        assert np.array_equal(training.rows[: done + 1], pair.losses[: done + 1])
        assert np.isnan(training.rows[done + 1 :]).all()
        assert np.array_equal(training.timeline.schedule, pair.schedule)
        assert training.documents.names == tuple(pair.record.name.values)
        assert training.documents.trained == 5
        training.model.train(False)
        with torch.no_grad():
            losses = training.losses(slice(None))
        assert np.array_equal(losses.numpy().astype(float), pair.losses[done])
        assert not training.optimizer.state_dict()["state"]
    fresh = rp.Training.open(pair.config)
    assert fresh.done == 0
    assert np.isnan(fresh.rows).all()
    for name, weight in rp.Training.at(pair, 0).model.parameters.items():
        assert torch.equal(weight, fresh.model.parameters[name]), name


def test_nothing_is_taken_up_that_is_not_there(
    pair: rp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(rp.Missing, match="no checkpoint after 3 episodes; there are some after 0"):
        rp.Training.at(pair, 3)
    with pytest.raises(rp.Missing, match="15 episodes are committed, and not 20"):
        rp.Training.at(pair, 20)
    settings = tiny(recorders=["checkpoints"], checkpoints={"every": "episode"})
    run = stopped(settings, tmp_path / "r", monkeypatch)
    ahead = run.path / "checkpoints" / f"episodes-{STOP + 1:05d}"
    shutil.copytree(run.path / "checkpoints" / f"episodes-{STOP:05d}", ahead)
    with pytest.raises(rp.Missing, match="12 episodes are committed, and not 13"):
        rp.Training.at(run, STOP + 1)
    before = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    for done in (STOP + 1, -1):
        with (
            Writer.reopen(run.path) as writer,
            pytest.raises(rp.InputError, match=rf"has 12 episodes, and not {done}"),
        ):
            writer.go_on(done)
    assert {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()} == before
    with pytest.raises(rp.InputError, match="no such run directory"):
        Writer.reopen(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_one_writer_at_a_time(pair: rp.Run, tmp_path: Path) -> None:
    shutil.copytree(pair.path, tmp_path / "run")
    file = tmp_path / "run" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": 1}))  # who trained it
    who = f"is being written by process {os.getpid()} on "
    with Writer.reopen(tmp_path / "run") as writer:
        writer.go_on(7)
        run = rp.open_run(tmp_path / "run")
        assert (run.status, run.episodes_done) == ("running", 15)
        assert run.checkpoints == [0, 5]
        with pytest.raises(rp.InputError, match=who):
            Writer.reopen(tmp_path / "run")
        with pytest.raises(rp.InputError, match=who):
            rp.fit(tiny(epochs=1), tmp_path / "run", overwrite=True)
        with pytest.raises(rp.InputError, match=who):
            run.resume()
    run = rp.open_run(tmp_path / "run")
    assert (run.status, run.episodes_done) == ("killed", 15)
    with Writer.reopen(tmp_path / "run") as writer:
        writer.finish("interrupted")
    assert rp.open_run(tmp_path / "run").status == "interrupted"


def some_episodes(training: rp.Training, count: int) -> None:
    """A plain loop around what `Training` gives."""
    for episode in range(training.done, training.done + count):
        for step in training.steps(episode):
            training.optimizer.zero_grad()
            training.model.losses(step.inputs).sum().backward()
            training.optimizer.step()
        training.done = episode + 1
        training.model.train(False)
        with torch.no_grad():
            training.rows[training.done] = training.losses(slice(None)).numpy()


def bits(training: rp.Training) -> dict[str, Any]:
    """All that a training has got to, as bytes."""
    optimizer = training.optimizer.state_dict()
    weights = {n: p.detach().numpy().tobytes() for n, p in training.model.parameters.items()}
    states = {
        (i, name): value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for i, state in optimizer["state"].items()
        for name, value in state.items()
    }
    return {
        "done": training.done,
        "rows": training.rows.tobytes(),
        "groups": optimizer["param_groups"],
        **weights,
        **{str(key): value for key, value in states.items()},
    }


@pytest.mark.parametrize(
    "optimizer",
    [{"lr": 0.05}, {"lr": 0.02, "momentum": 0.9}, {"name": "adam"}, {"name": "adamw", "lr": 0.01}],
    ids=str,
)
def test_a_state_brings_everything_back(optimizer: dict[str, Any]) -> None:
    """To the training that it is of, and to another of the same settings, also through a file."""
    settings = tiny(optimizer=optimizer, model={"architecture": "llama", "dropout": 0.2})
    training = rp.Training.open(settings)
    some_episodes(training, 3)
    there, state = bits(training), training.state()
    file = io.BytesIO()
    torch.save(state, file)
    some_episodes(training, 4)
    end = bits(training)
    assert end != there
    training.restore(state)
    assert bits(training) == there
    some_episodes(training, 4)
    assert bits(training) == end
    training.restore(state)
    assert bits(training) == there, "the state was trained away"
    other = rp.Training.open(settings)
    file.seek(0)
    other.restore(torch.load(file, weights_only=False))
    assert bits(other) == there
    some_episodes(other, 4)
    assert bits(other) == end


def test_a_training_needs_no_plug_in_but_its_optimizer(tmp_path: Path) -> None:
    """Of documents and the schedule the record has all."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "import recovery_probe as rp\n"
        "@dataclass\n"
        "class Order(rp.Schedule):\n"
        "    name = 'order'\n"
        "    def order(self, documents, epochs, rng):\n"
        "        return [0, 1, 0, 1, 4]\n"
        "@dataclass\n"
        "class Ones(rp.Source):\n"
        "    name = 'ones'\n"
        "    def read(self, address):\n"
        "        return (rp.Tokens(str(i), tuple([i] * (24 + i))) for i in range(9))\n"
    )
    file = tmp_path / "mine.py"
    settings = tiny(
        schedule={"kind": f"{file}:Order"},
        documents={"source": f"{file}:Ones"},
        recorders=["checkpoints"],
    )
    run = rp.fit(settings, tmp_path / "run")
    file.unlink()
    training = rp.Training.at(rp.open_run(run.path), 5)
    assert training.timeline.schedule.tolist() == [0, 1, 0, 1, 4]
    with torch.no_grad():
        training.model.train(False)
        losses = training.losses(slice(None)).numpy()
    np.testing.assert_allclose(losses, run.losses[-1], atol=1e-6)
    assert json.loads((run.path / "provenance.json").read_text())["status"] == "complete"
