"""Recorders own their settings, and their files are read without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import tiny

import recovery_probe as rp
from recovery_probe import config, plugins
from recovery_probe.cli import main
from recovery_probe.recorders.gradients import Gradients
from recovery_probe.recorders.residual_stream import ResidualStream

INSTALLED = sorted(plugins.installed("recorders"))


def train(toml: Path, out: Path, *flags: str) -> None:
    main(["train", "--config", str(toml), "--out", str(out), *flags])


# --- settings ---------------------------------------------------------------------------------


def test_settings_are_the_same_from_toml_flags_and_objects(tmp_path: Path) -> None:
    base = config.to_toml(tiny(recorders=[], epochs=2))
    (tmp_path / "base.toml").write_text(base)
    toml = tmp_path / "gradients.toml"
    toml.write_text(
        base.replace("recorders = []", 'recorders = ["gradients"]')
        + '\n[gradients]\nevery = "epoch"\n'
    )
    flags = ["--record", "gradients", "--gradients.every", "epoch"]
    train(tmp_path / "base.toml", tmp_path / "flags", *flags)
    runs = [
        rp.fit(config.load(toml), tmp_path / "toml"),
        rp.open_run(tmp_path / "flags"),
        rp.fit(tiny(recorders=[], epochs=2), tmp_path / "object", hooks=[Gradients(every="epoch")]),
    ]
    first, *others = [run.recorder("gradients").load() for run in runs]
    assert first.step.values.tolist() == [0, 15]
    assert first.attrs == {"every": "epoch"}
    for other in others:
        xr.testing.assert_identical(first, other)
    assert runs[0].config == runs[1].config
    assert runs[0].config.gradients.every == "epoch"


def test_settings_are_attributes_of_what_was_recorded(tmp_path: Path) -> None:
    changed = {"residual_stream": {"focal": 3}, "attention_patterns": {"patterns": True}}
    settings = tiny(epochs=1, recorders=INSTALLED, **changed)
    run = rp.fit(settings, tmp_path / "run")
    for name in run.recorders:
        defaults = plugins.settings_of(plugins.find("recorders", name)())
        assert run.recorder(name).attrs == defaults | changed.get(name, {})
    assert run.residual_stream.attrs["focal"] == 3


def test_a_recorder_given_as_an_object_is_told_by_its_settings(tmp_path: Path) -> None:
    settings, mine = tiny(recorders=[], epochs=1), ResidualStream(focal=2)
    run = rp.fit(settings, tmp_path / "run", hooks=[mine])
    assert "residual_stream (every step, reduce mean, focal 2" in repr(run)
    again = rp.fit(settings, tmp_path / "run", hooks=[ResidualStream(focal=2)], resume=True)
    assert again.provenance == run.provenance
    with pytest.raises(rp.InputError, match=r"hooks is .*focal 2.* there, and .*focal 1.* here"):
        rp.fit(settings, tmp_path / "run", hooks=[ResidualStream(focal=1)], resume=True)
    assert not hasattr(mine, "trained")  # each run gets a copy of its own


MINE = """
from __future__ import annotations
from dataclasses import dataclass
from recovery_probe import Array, Layout, Recorder


@dataclass
class Scaled(Recorder):
    name = "scaled"
    # how often
    every: str = "episode"
    # what the norm is multiplied by
    factor: float = 1.0

    def start(self, training):
        array = Array("step", (), (), "norm of the embedding's gradient, scaled", "nats")
        return Layout({"norm": array}, every={"step": self.every})

    def after_backward(self, step):
        gradient = step.model.parameters["embed.weight"].grad
        return {"norm": self.factor * float(gradient.norm())}
"""


def test_a_third_partys_recorder_has_settings_as_ours_do(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "base.toml").write_text(config.to_toml(tiny(recorders=["gradients"], epochs=1)))
    flags = ["--record", f"{tmp_path / 'mine.py'}:Scaled", "--Scaled.factor", "3"]
    train(tmp_path / "base.toml", tmp_path / "run", *flags)
    run = rp.open_run(tmp_path / "run")
    scaled = run.recorder("scaled").load()
    assert scaled.attrs == {"every": "episode", "factor": 3.0}
    norm = run.gradients.norm.sel(name="embed")[::3]
    np.testing.assert_allclose(scaled.norm, 3 * np.squeeze(norm), rtol=1e-6)
    again = rp.fit(config.load(run.path / "config.toml"), tmp_path / "again")
    xr.testing.assert_identical(again.recorder("scaled").load(), scaled)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradients": {"evry": "epoch"}}, r"unknown setting gradients.evry.*gradients.every"),
        ({"gradients": {"every": 5}}, r"gradients.every = 5: .*string"),
        ({"residual_stream": {"focal": -1}}, r"residual_stream.focal = -1"),
        ({"residual_stream": {"reduce": "max"}}, r"residual_stream.reduce = 'max'.*'mean'"),
        ({"checkpoints": {"keep": 2.5}}, r"checkpoints.keep = 2.5"),
        # Of one that is not named, too.
        ({"attention_patterns": {"pattern": True}}, r"attention_patterns.pattern\b.*patterns"),
        ({"gradient": {"every": "epoch"}}, r"unknown setting gradient.every.*gradients.every"),
        ({"recorders": ["gradient"]}, r"no recorders plug-in 'gradient'.*gradients"),
        ({"recorders": ["gradients", "gradients"]}, r"'gradients' is taken"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(rp.InputError, match=said):
        tiny(**changes)


def test_two_recorders_of_one_name_are_refused_with_the_mend(tmp_path: Path) -> None:
    said = "two recorders are called 'gradients'.*--no-record gradients"
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(recorders=["gradients"]), tmp_path / "run", hooks=[Gradients(every="epoch")])
    assert not (tmp_path / "run").exists()


# --- plug-in files ----------------------------------------------------------------------------


def test_every_recorder_file_is_an_entry_point() -> None:
    import recovery_probe.recorders as package

    others = {"__init__", "hook", "checks", "points", "recording", "scalars", "sketch_check"}
    files = {f.stem for f in Path(package.__file__).parent.glob("*.py")} - others
    assert files == {p.name for p in entry_points(group="recovery_probe.recorders")}


def test_our_plug_in_files_are_read_without_torch() -> None:
    groups = ("recorders", "interventions", "schedules", "optimizers", "documents")
    modules = [f"recovery_probe.{group}" for group in groups] + [
        point.module
        for group in groups
        for point in entry_points(group=f"recovery_probe.{group}")
        if point.module.startswith("recovery_probe.")
    ]
    code = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        "    slow = {'torch', 'transformer_lens', 'transformers', 'datasets'} & {*sys.modules}\n"
        "    assert not slow, (module, slow)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
