"""What was not recorded, seen by training again."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.record.layout import EPISODE, Array
from recovery_probe.recorders import Episode, Layout, Recorder, Rows
from recovery_probe.testing import toy_settings as tiny

RECORDED = (
    *("token_losses", "residual_stream", "gradients", "weight_deltas", "document_gradients"),
    "allocation",
)


def strength(tensor: Any, *, hook: Any) -> Any:
    return tensor.norm()


pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")
HOOK = ("strength", "blocks.*.hook_resid_post", strength)


def without(run: rp.Run, path: Path, *groups: str) -> rp.Run:
    """A copy of a run that did not record these."""
    shutil.copytree(run.path, path)
    for name in groups:
        shutil.rmtree(path / "record.zarr" / name)
    zarr.consolidate_metadata(path / "record.zarr")
    return rp.open_run(path)


@pytest.mark.parametrize("episodes", [None, (0, 3), (5, 10), (7, 13), (14, 15)])
def test_any_stretch_gives_what_was_recorded(
    episodes: tuple[int, int] | None, pair: rp.Run, tmp_path: Path
) -> None:
    run = without(pair, tmp_path / "run", *pair.recorders)
    assert run.recorders == []
    before = run.losses.copy(), run.train_loss.copy()
    (run.path / ".replay-killed" / "readout").mkdir(parents=True)  # is not left there for ever
    start, stop = episodes or (0, 15)
    # Of the last two epochs alone.
    names = [name for name in RECORDED if name != "allocation" or stop > 5]
    again = run.replay(record=names, episodes=episodes)
    assert again.recorders == sorted(names)
    for name in names:
        there, recorded = again.recorder(name), pair.recorder(name)
        for time in {"step", "episodes_done"} & set(recorded.dims):
            times = recorded[time].values
            kept = (times >= start * 3) & (times < stop * 3)
            if time == "episodes_done":
                kept = (times > start) & (times <= stop) | (times == 0) & (start == 0)
            recorded = recorded.isel({time: kept})
        assert there.drop_attrs().load().identical(recorded.drop_attrs().load()), name
        assert there.attrs["replayed"]["episodes"] == [start, stop]
        assert "bit for bit" in there.attrs["replayed"]["agreed"]
    assert again.losses.equals(before[0])
    assert again.train_loss.equals(before[1])
    assert not list(run.path.glob(".replay*"))
    assert not (run.path / "lock").exists()


def test_a_new_hook_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    """Of a run with an intervention, dropout and an optimizer that remembers."""
    settings = tiny(
        model={"architecture": "llama", "dropout": 0.2},
        optimizer={"name": "adam", "lr": 1e-3},
        interventions=["mask"],
        recorders=["checkpoints"],
    )
    whole = rp.fit(settings, tmp_path / "whole", hooks=[HOOK], hook_during="both")
    run = rp.fit(settings, tmp_path / "run").replay(hooks=[HOOK], hook_during="both")
    there, recorded = (r.recorder("strength").drop_attrs().load() for r in (run, whole))
    assert there.identical(recorded)
    assert run.config == rp.open_run(run.path).config


@dataclass
class Slow(Recorder):
    name = "slow"

    def start(self, training: Any) -> Layout:
        return Layout({"done": Array(EPISODE, (), (), "episodes done", "1", "int64")})

    def rehearse(self) -> None:
        sleep(0.3)

    def after_episode(self, episode: Episode) -> Rows:
        return {"done": episode.done}


def test_what_it_will_take_is_said_of_the_episodes_that_are_replayed(
    pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = without(pair, tmp_path / "run")
    run.replay(record=[Slow], episodes=(8, 13))  # eight from the checkpoint after 5
    (said,) = re.findall("slow: about (.+) s more", capsys.readouterr().err)
    assert 2 <= int(said) < 0.3 * 15


def test_any_moment(pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are those of a run that kept them."""
    every = tiny(recorders=["checkpoints"], checkpoints={"every": "episode"})
    whole = rp.fit(every, tmp_path / "whole")
    for done in (0, 3, 5, 14):
        theirs, ours = whole.weights_at(done), pair.weights_at(done)
        assert theirs.keys() == ours.keys()
        assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)
        said = capsys.readouterr().err
        assert ("4 episodes are trained again, from the checkpoint after 10" in said) == (
            done == 14
        )
    model = pair.model_at(12)
    with torch.no_grad():
        model.train(False)
        inputs = rp.Training.at(pair, 10).inputs
        assert np.array_equal(model.losses(inputs).numpy().astype(float), pair.losses[12])
    with pytest.raises(rp.Missing, match="has 15 episodes, and not 16"):
        pair.model_at(16)


def test_a_run_without_checkpoints_begins_at_its_start(tmp_path: Path) -> None:
    run = rp.fit(tiny(epochs=1, recorders=[]), tmp_path / "run")
    assert not run.checkpoints
    run.replay(record=["gradients"], episodes=(3, 5))
    assert run.gradients.sizes["step"] == 6


def test_another_run_adds_nothing(pair: rp.Run, tmp_path: Path) -> None:
    """Losses that are not the recorded ones, as those of other documents or other code."""
    run = without(pair, tmp_path / "run")
    shutil.rmtree(run.path / "record.zarr" / "gradients")
    training = zarr.open_group(run.path / "record.zarr" / "training", mode="r+")
    losses: Any = training["losses"]
    losses[8] = losses[8] + 0.5
    files = sorted(f for f in run.path.rglob("*"))
    with pytest.raises(rp.InputError, match=r"after 8 episodes losses differ .* by 0\.5 nats"):
        rp.open_run(run.path).replay(hooks=[HOOK])
    assert sorted(f for f in run.path.rglob("*")) == files
    losses[8] = losses[8] - 0.5 + 1e-7
    again = rp.open_run(run.path).replay(hooks=[HOOK])
    agreed = again.recorder("strength").attrs["replayed"]["agreed"]
    assert "differ from the recorded ones by up to 1e-07 nats (0.01 is allowed)" in agreed


def test_what_cannot_be_replayed_is_said(pair: rp.Run, tmp_path: Path) -> None:
    for options, message in (
        ({}, "replay records nothing"),
        ({"record": ["gradients"]}, "has gradients already; --overwrite"),
        ({"hooks": [HOOK], "episodes": (3, 3)}, "episodes 3:3: .* has episodes 0:15"),
        ({"hooks": [HOOK], "episodes": (0, 99)}, "episodes 0:99"),
        ({"record": ["gradient"]}, "did you mean 'gradients'"),
    ):
        with pytest.raises(rp.InputError, match=message):
            pair.replay(**options)
    simulated = rp.simulate("age_only", tmp_path / "age", documents=5, epochs=3)
    with pytest.raises(rp.Missing, match="simulation age_only has no checkpoints: no network"):
        simulated.replay(hooks=[HOOK])


def test_the_command(pair: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = without(pair, tmp_path / "run")
    (tmp_path / "mine.py").write_text("def f(tensor, *, hook):\n    return tensor.mean()\n")
    words = [
        "replay",
        str(run.path),
        "--hook",
        f"{tmp_path / 'mine.py'}:f@blocks.0.hook_resid_post",
    ]
    words += ["--record", "attention_patterns", "--attention_patterns.every", "2 steps"]
    main([*words, "--episodes", "5:10"])
    assert "5 episodes are trained again, from the checkpoint after 5" in capsys.readouterr().err
    again = rp.open_run(run.path)
    assert {"f", "attention_patterns"} < set(again.recorders)
    assert again.recorder("attention_patterns").step.values.tolist() == list(range(16, 30, 2))
    assert again.recorder("f").sizes["step"] == 15
    for bad, message in (
        (["--episodes", "5-10"], "--episodes 5-10: expected two numbers, such as 50:75"),
        ([], "has attention_patterns already"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*words[:2], "--record", "attention_patterns", *bad])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
