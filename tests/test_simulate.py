"""Simulations as runs: format, the analyses on them, the command line, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import analyze
from recovery_probe.analyze.groups import match, seeds_and_controls
from recovery_probe.cli import main
from recovery_probe.simulations.linear_documents import LinearDocuments

NAMES = sorted(plugins.installed("simulations"))
SMALL = {"documents": 5, "held_out": 2, "epochs": 3, "steps": 3}
TRAJECTORY = {"weight_cyclicity", "weight_residuals"}
ALL = TRAJECTORY | {
    "age_curve",
    "recovery",
    "loss_curves",
    "online_loss",
    "gradient_similarity",
    "activation_similarity",
    "step_sizes",
    "token_recovery",
}
LOSSES = {"age_curve", "recovery", "loss_curves", "online_loss"}
DONE = {  # of the analyses above, those that a simulation has enough for
    "linear_documents": ALL,
    "planar_ring": ALL - TRAJECTORY - {"step_sizes", "gradient_similarity"},
    "age_only": LOSSES,
    "common_shock": LOSSES,
    "drift": LOSSES | TRAJECTORY,
    "decelerating_drift": LOSSES | TRAJECTORY,
}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """Do not write to it."""
    return rp.simulate("linear_documents", tmp_path_factory.mktemp("linear"), **SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_analyses_run_on_it_unchanged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for n, v in SMALL.items() for word in (f"--{n}", str(v))]
    main(["simulate", name, "--out", str(tmp_path), *settings])
    assert str(tmp_path / "cyclic") in capsys.readouterr().out
    run = rp.open_run(tmp_path / "cyclic")
    (control,) = run.controls
    for one in (run, control):
        assert one.status == "complete"
        assert one.declared
        one.check()
        assert name in repr(one)
    drawn = plugins.find("simulations", name)(**SMALL).draw()
    np.testing.assert_array_equal(run.losses, drawn["cyclic"].losses)
    np.testing.assert_array_equal(control.losses, drawn["shuffled"].losses)
    np.testing.assert_array_equal(control.train_loss, drawn["shuffled"].train_loss)
    np.testing.assert_array_equal(control.schedule, drawn["shuffled"].schedule)
    put: Any
    for analysis in sorted(ALL):
        if name == "planar_ring" and analysis not in DONE[name]:
            continue  # its control is at 0 at once: no number there means anything
        put = plugins.find("analyses", analysis)()
        if analysis in DONE[name]:
            assert put(run, control).attrs["T"] == 5
        else:
            with pytest.raises(rp.Missing, match="no network was trained"):
                put(run, control)


def test_a_report(linear: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["analyze", str(linear.path.parent), "--out", str(tmp_path), "--analysis", "recovery"])
    assert "recovery score is" in capsys.readouterr().out
    assert "simulation:linear_documents" in (tmp_path / "report.html").read_text("utf-8")


def test_groups_are_laid_out_as_recorders_lay_them_out(linear: rp.Run, pair: rp.Run) -> None:
    for name in ("weight_deltas", "gradients", "token_losses", "residual_stream", "allocation"):
        ours, trained = linear.recorder(name), pair.recorder(name)
        assert set(ours) == set(trained)
        for array in trained:
            assert ours[array].dims == trained[array].dims, array
            assert set(ours[array].coords) == set(trained[array].coords), array
            assert ours[array].attrs.keys() == trained[array].attrs.keys()
            assert ours[array].attrs["covers"] == trained[array].attrs["covers"]
        assert ours.attrs.keys() == trained.attrs.keys()
    assert linear.document_gradients.inner.dims[1:] == ("module", "document", "other")
    moved = linear.weight_trajectory().diff("episodes_done")
    drawn = LinearDocuments(**SMALL).draw()["cyclic"]
    np.testing.assert_allclose(moved.values.reshape(15, -1), drawn.updates, atol=1e-12)
    np.testing.assert_allclose(linear.token_losses.loss.mean("position"), linear.losses, rtol=1e-5)


def test_provenance_and_settings_say_what_it_is(linear: rp.Run) -> None:
    settings = SMALL | {"seed": 0, "share": 0.5, "equations": 20, "weights": 50, "lr": 0.3}
    told = {"name": "linear_documents", "settings": settings}
    assert linear.provenance["simulated"] == told
    assert linear.controls[0].provenance["simulated"] == told
    assert [r.provenance["role"] for r in (linear, *linear.controls)] == ["run", "control"]
    assert linear.config.model.source == "simulation:linear_documents"
    assert linear.config.optimizer.lr == 0.3
    assert linear.config.linear_documents == {"share": 0.5, "equations": 20, "weights": 50}
    assert linear.controls[0].config.schedule.keep_first is False


def test_runs_of_other_settings_are_told_apart(linear: rp.Run, tmp_path: Path) -> None:
    seed = rp.simulate(LinearDocuments, tmp_path / "seed", seed=1, **SMALL)
    other = rp.simulate(LinearDocuments(**SMALL), tmp_path / "other", share=0.2)
    assert other.provenance["simulated"]["settings"]["documents"] == 5
    seeds, controls = seeds_and_controls([linear, seed, other])
    assert (seeds, controls) == ([linear, seed], [other])
    match([linear, seed], [*linear.controls, *seed.controls])
    with pytest.raises(rp.InputError, match=r"differ in linear_documents.share"):
        match([linear, other], [])
    with pytest.raises(rp.InputError, match=r"beside the schedule .*linear_documents.share"):
        match([linear], other.controls)
    digests = [run.record.digest.values.tolist() for run in (linear, seed, other)]
    assert len({d for of_run in digests for d in of_run}) == 21


def test_no_network_was_trained(linear: rp.Run) -> None:
    for ask in (
        lambda: rp.Training.at(linear, 5),
        lambda: linear.model_at(5),
        lambda: linear.weights_at(5),
        lambda: linear.recorder("attention_patterns"),
        lambda: analyze(linear, analyses=["pairwise_recovery"], from_checkpoint=True),
    ):
        with pytest.raises(rp.Missing, match=r"linear_documents has .*no network was trained"):
            ask()


OWN = """
from dataclasses import dataclass
import numpy as np
import recovery_probe as rp
from recovery_probe.simulations import Drawn

@dataclass
class Flat(rp.Simulation):
    '''Nothing happens.'''
    name = "flat"
    # of every document, nats
    level: float = 2.0

    def draw(self, seed=None):
        episodes = self.epochs * self.documents
        flat = np.full((episodes + 1, self.documents + self.held_out), self.level)
        steps = np.full(episodes * self.steps, self.level)
        return {kind: Drawn(order, flat, steps) for kind, order in self.orders(seed or 0).items()}
"""


def test_a_simulation_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    spec = f"{tmp_path / 'mine.py'}:Flat"
    main(["simulate", spec, "--out", str(tmp_path / "out"), "--level", "3.5", "--epochs", "2"])
    run = rp.open_run(tmp_path / "out" / "cyclic")
    assert (run.losses == 3.5).all()
    assert run.config.flat.level == 3.5
    assert run.losses.shape == (41, 25)
    with pytest.raises(SystemExit):
        main(["simulate", spec, "--help"])
    assert "of every document, nats" in " ".join(capsys.readouterr().out.split())


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate"])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in NAMES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["linear_document"], "did you mean 'linear_documents'?"),
        (["--out", "x"], "its first word"),
        (["drift", "--share", "1"], "unknown setting --share"),
        (["linear_documents", "--share", "1.5"], "linear_documents.share = 1.5"),
        (["linear_documents", "--lr", "50"], "do not stay finite at lr = 50: lower lr"),
        (["linear_documents", "--documents", "300"], "6100 equations, more than 4096"),
        (["age_only", "--planted", "1"], "age_only.planted = 1.0"),
        (["age_only", "--documents", "1"], "age_only.documents = 1"),
        (["sgd"], "no simulations plug-in 'sgd'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["simulate", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    first = rp.simulate("age_only", tmp_path, **SMALL)
    with pytest.raises(rp.InputError, match="holds a run already: choose another --out"):
        rp.simulate("drift", tmp_path, **SMALL)
    with pytest.raises(rp.InputError, match="holds a run already; choose another --out"):
        rp.simulate("drift", first.path, **SMALL, overwrite=True)
    assert rp.open_run(first.path).provenance["simulated"]["name"] == "age_only"
    again = rp.simulate("drift", tmp_path, overwrite=True, **SMALL)
    assert again.path == first.path
    assert again.provenance["simulated"]["name"] == "drift"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shuffled").mkdir()
    (tmp_path / "other" / "shuffled" / "mine.txt").write_text("")
    with pytest.raises(rp.InputError, match="exists and is not a run"):
        rp.simulate("drift", tmp_path / "other", overwrite=True, **SMALL)
    assert not (tmp_path / "other" / "cyclic").exists()
    with pytest.raises(rp.InputError, match="not a class of simulations"):
        rp.simulate(rp.Recorder, tmp_path / "x")


def test_the_module_is_a_door(tmp_path: Path) -> None:
    words = ["linear_documents", "--documents", "3", "--epochs", "2", "--out", str(tmp_path / "x")]
    script = f"""
import sys, atexit, runpy
atexit.register(lambda: print('LOADED', *sys.modules))
sys.argv[1:] = {words}
runpy.run_module('recovery_probe.simulate', run_name='__main__')
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not {"torch", "transformers", "matplotlib"} & set(ended.stdout.split())
    assert rp.open_run(tmp_path / "x" / "cyclic").status == "complete"
