"""A package of somebody else's, installed as any is: a recorder, an intervention, a schedule and an
analysis, each with settings of its own, used from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import recovery_probe as rp

CODE = {
    # Imported only when it is named: it says so on standard error.
    "loud/recorder.py": '''
import sys
from dataclasses import dataclass

import torch
from recovery_probe import STEP, Array, Layout, Recorder

print("loud.recorder is imported", file=sys.stderr)


@dataclass
class Loudness(Recorder):
    """`loudness` (step,): norm of the gradient, times a factor."""

    name = "loudness"

    # what the norm is multiplied with
    factor: float = 1.0

    def start(self, training):
        array = Array(STEP, (), (), "norm of the gradient, times factor", "nats")
        return Layout({"loudness": array}, every={STEP: "step"})

    def after_backward(self, step):
        squares = [p.grad.pow(2).sum() for p in step.model.parameters.values()]
        return {"loudness": self.factor * torch.stack(squares).sum().sqrt()}
''',
    "loud/intervention.py": '''
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from recovery_probe import Intervention


@dataclass
class Damp(Intervention):
    """Every gradient times a number."""

    name = "damp"

    # the number, 0 or more
    by: Annotated[float, Ge(0)] = 0.5

    def gradients(self, step):
        for parameter in step.model.parameters.values():
            parameter.grad *= self.by
''',
    "loud/schedule.py": '''
from dataclasses import dataclass

import numpy as np
from recovery_probe import Schedule


@dataclass
class Zigzag(Schedule):
    """To and fro, and document 0 more often: uneven."""

    name = "zigzag"

    # how often document 0 comes in a row
    pause: int = 1

    def order(self, documents, epochs, rng):
        there = [0] * self.pause + list(range(1, documents))
        return np.array((there + there[:0:-1]) * epochs)
''',
    "loud/analysis.py": '''
from dataclasses import dataclass
from typing import ClassVar

import xarray as xr
from recovery_probe import Analysis, Estimate
from recovery_probe.analyze import estimate, plots
from recovery_probe.analyze.needs import RUN, recorded


@dataclass(frozen=True)
class Loudest(Analysis):
    """The mean of the largest loudnesses."""

    # how many
    count: int = 3

    name = "loudest"
    question = "How loud is it?"
    null = "No gradient, no noise."
    blind_spot = "Loud is not large."
    needs = (RUN, recorded("loudness"))

    def compute(self, *runs):
        largest = [sorted(r.recorder("loudness").loudness.values)[-self.count :] for r in runs]
        dataset = xr.Dataset(coords={"run": [r.path.name for r in runs]})
        means = xr.DataArray(largest, dims=("run", "rank")).mean("rank").values
        estimate.put(dataset, "mean", "run", Estimate(means, means - 1, means + 1))
        return dataset

    def plot(self, dataset):
        fig, (axes,) = plots.figure()
        axes.plot(dataset["mean"])
        return fig

    def verdict(self, dataset):
        return f"The {self.count} loudest are {estimate.get(dataset, 'mean')[0]}."
''',
}
ENTRY_POINTS = """
[recovery_probe.recorders]
loudness = loud.recorder:Loudness
[recovery_probe.interventions]
damp = loud.intervention:Damp
[recovery_probe.schedules]
zigzag = loud.schedule:Zigzag
[recovery_probe.analyses]
loudest = loud.analysis:Loudest
"""
TINY = [
    *("--epochs", "2", "--steps", "2", "--threads", "1", "--recorders", "checkpoints"),
    *("--documents.count", "4", "--documents.held_out", "2"),
    *("--documents.tokens", "16", "--documents.min_tokens", "16"),
    *("--model.width", "32", "--model.depth", "1", "--model.heads", "2"),
    *("--model.vocabulary", "300"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed, by pip, from a wheel."""
    folder = tmp_path_factory.mktemp("third")
    wheel = folder / "loud-1.0-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": ENTRY_POINTS,
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("loud/__init__.py", "")
        for name, text in CODE.items():
            archive.writestr(name, text)
        for name, text in info.items():
            archive.writestr(f"loud-1.0.dist-info/{name}", text)
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    return target


def call(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def out(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of them, from the command line."""
    out = tmp_path_factory.mktemp("loud") / "run"
    trained = call(
        site,
        "recovery_probe.train",
        "quickstart",
        *TINY,
        *("--out", out, "--control", "none"),
        *("--record", "loudness", "--loudness.factor", "2"),
        *("--intervene", "damp", "--damp.by", "0.25"),
        *("--schedule.kind", "zigzag", "--schedule.pause", "2"),
    )
    assert trained.returncode == 0, trained.stderr
    return out


def test_all_four_have_settings_on_the_command_line(site: Path, out: Path, tmp_path: Path) -> None:
    # This process knows nothing of the package, and reads the run all the same.
    run = rp.open_run(out)
    assert run.schedule.values.tolist() == [0, 0, 1, 2, 3, 3, 2, 1, 0] * 2
    assert run.status == "complete"
    assert run.episodes_done == 18
    assert run.config.schedule.pause == 2
    assert run.config.damp.by == 0.25
    assert run.interventions == ("damp",)
    assert run.recorder("loudness").attrs["factor"] == 2.0
    assert "damp, by 0.25" in repr(run)
    # What was recorded is what it became: twice the norm of a quarter of the gradient.
    plain = call(
        site,
        "recovery_probe.train",
        "quickstart",
        *TINY,
        *("--out", tmp_path / "plain", "--control", "none"),
        *("--record", "gradients", "--schedule.kind", "zigzag", "--schedule.pause", "2"),
    )
    assert plain.returncode == 0, plain.stderr
    norm = np.sqrt((rp.open_run(tmp_path / "plain").gradients.norm[0].values ** 2).sum())
    assert np.isclose(run.recorder("loudness").loudness[0], 2 * 0.25 * norm, rtol=1e-5)

    analysed = call(
        site,
        "recovery_probe.analyze",
        *(out, "--analysis", "loudest", "--loudest.count", "5"),
    )
    assert analysed.returncode == 0, analysed.stderr
    mean = np.sort(run.recorder("loudness").loudness.values)[-5:].mean()
    assert f"loudest: The 5 loudest are {mean:.2f}" in analysed.stdout
    report = (out / "report.html").read_text()
    assert "How loud is it?" in report
    assert "damp" in report


def test_a_run_repeats_from_its_own_settings(site: Path, out: Path, tmp_path: Path) -> None:
    again = call(
        site,
        "recovery_probe.train",
        *("--config", out / "config.toml", "--out", tmp_path / "again"),
    )
    assert again.returncode == 0, again.stderr
    runs = [rp.open_run(out), rp.open_run(tmp_path / "again")]
    assert runs[0].config == runs[1].config
    assert np.array_equal(runs[0].losses, runs[1].losses)


def test_help_shows_the_settings_of_what_is_named(site: Path) -> None:
    train = ["recovery_probe.train", "quickstart"]
    shown = call(site, *train, "--record", "loudness", "--schedule.kind", "zigzag", "--help").stdout
    assert "--loudness.factor FLOAT" in shown
    assert "what the norm is multiplied with" in shown
    assert "--schedule.pause INT" in shown
    assert "how often document 0 comes in a row" in shown
    plain = call(site, *train, "--help")
    assert "loudness" not in plain.stdout
    assert "is imported" not in plain.stderr
    assert (
        "--loudest.count INT"
        in call(site, "recovery_probe.analyze", "--analysis", "loudest", "--help").stdout
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--record loudness --loudness.facto 2",
            "--loudness.facto; did you mean 'loudness.factor'",
        ),
        ("--intervene damp --damp.by -1", "damp.by = -1.0: should be greater than or equal to 0"),
        ("--loudness.factor 2", "unknown setting --loudness.factor"),
        ("--intervene loudness", "no interventions plug-in 'loudness'"),
    ],
)
def test_mistakes_are_one_line(site: Path, tmp_path: Path, words: str, said: str) -> None:
    ended = call(
        site, "recovery_probe.train", "quickstart", *words.split(), "--out", tmp_path / "no"
    )
    assert ended.returncode == 2
    (line,) = [part for part in ended.stderr.splitlines() if part.startswith("error")]
    assert said in line
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "no").exists()
