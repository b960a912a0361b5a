"""A run is read without the plug-ins that made it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny

import recovery_probe as rp

MINE = """
from dataclasses import dataclass
import recovery_probe as rp

@dataclass
class Counts(rp.Recorder):
    name = "Counts"
    # how much is added
    more: int = 2
    def start(self, training):
        return rp.Layout({"count": rp.Array(rp.STEP, (), (), "counted", "1")})
    def after_step(self, step):
        return {"count": float(step.index + self.more)}

@dataclass
class Halves(rp.Intervention):
    name = "halves"
    by: float = 0.5
    def gradients(self, step):
        for parameter in step.model.parameters.values():
            parameter.grad *= self.by

@dataclass
class Back(rp.Schedule):
    name = "back"
    times: int = 2
    def order(self, documents, epochs, rng):
        return list(range(documents))[::-1] * self.times

@dataclass
class Ones(rp.Source):
    name = "ones"
    start: int = 3
    def read(self, address):
        return (rp.Tokens(str(i), tuple([i] * (24 + i))) for i in range(self.start, 19))

@dataclass
class Slow(rp.Optimizer):
    name = "slow"
    rate: float = 0.01
    def make(self, parameters):
        import torch
        return torch.optim.SGD(parameters, lr=self.rate)
"""


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run of plug-ins of a file that is gone since, but for one that must not be run."""
    folder = tmp_path_factory.mktemp("of_a_file")
    (folder / "mine.py").write_text(MINE)
    mine = f"{folder}/mine.py"
    settings = tiny(
        recorders=[f"{mine}:Counts", "gradients"],
        interventions=[f"{mine}:Halves"],
        schedule={"kind": f"{mine}:Back", "times": 1},
        documents={"source": f"{mine}:Ones", "start": 1},
        optimizer={"name": f"{mine}:Slow", "rate": 0.02},
        Counts={"more": 7},
    )
    run = rp.fit(settings, folder / "run")
    (folder / "mine.py").unlink()
    return run


def test_a_run_is_read_without_the_plug_ins_that_made_it(of_a_file: rp.Run) -> None:
    """Also where one of them stands again in its place: none of its code is run."""
    run = rp.open_run(of_a_file.path)
    run.check()
    assert run.Counts["count"].values.tolist() == [i + 7.0 for i in range(15)]
    assert run.Counts.attrs["more"] == 7
    config = run.config
    assert (config.Counts.more, config.Halves.by) == (7, 0.5)
    assert (config.schedule.times, config.documents.start, config.optimizer.rate) == (1, 1, 0.02)
    assert run.schedule.values.tolist() == [4, 3, 2, 1, 0]
    assert run.interventions[0].endswith("mine.py:Halves")
    for word in ("Halves, by 0.5", "Back, times 1", "Slow, rate 0.02", "Counts"):
        assert word in repr(run)
    assert run.controls == []
    marker = run.path.parent / "ran"
    file = run.path.parent / "mine.py"
    file.write_text(f"open({str(marker)!r}, 'w').close()\n" + MINE)
    code = f"""
import sys, recovery_probe as rp
run = rp.open_run({str(run.path)!r})
run.check(), repr(run), run._repr_html_(), run.Counts.load(), run.config.Counts, run.recovery
print([m for m in sys.modules if m.startswith("recovery_probe_user") or m == "torch"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert not marker.exists()
    file.unlink()


def test_to_train_again_the_plug_ins_are_needed(of_a_file: rp.Run, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=r"mine\.py: no such file|no such file as .*mine\.py"):
        rp.fit(rp.open_run(of_a_file.path).config, tmp_path / "again")
    assert not os.listdir(tmp_path)


def test_a_run_of_plug_ins_that_are_installed_no_more(pair: rp.Run, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(pair.path, path)
    text = (path / "config.toml").read_text()
    for ours, theirs in (("residual_stream", "their_stream"), ('"sgd"', '"theirs"')):
        text = text.replace(ours, theirs)
    (path / "config.toml").write_text(text.replace('"cyclic"', '"spiral"'))
    run = rp.open_run(path)
    run.check()
    assert run.config.their_stream.every == "step"
    assert (run.config.optimizer.name, run.config.optimizer.lr) == ("theirs", 0.1)
    assert np.array_equal(run.losses, pair.losses)
    assert "spiral, 3 epochs" in repr(run)
    with pytest.raises(rp.InputError, match="plug-in 'spiral'"):
        rp.changed(run.config, epochs=4)
