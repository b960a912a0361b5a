"""Experiments, and the one that leaves documents out and turns the order about: on linear documents
beside the published numbers of a separate simulation, and on a network."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, training
from explained import said
from kills import LIBRARIES, differences
from recovery_probe_analyses.clock_or_cue import ClockOrCue

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import estimate
from recovery_probe.analyze.across import across
from recovery_probe.cli import main
from recovery_probe.experiments.conduct import conduct
from recovery_probe.simulations.linear_documents import LinearDocuments

T = 20
SMALL = {"documents": {"count": T, "tokens": 4, "min_tokens": 4, "held_out": 0}, "steps": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run and its control, with all arms. Do not write to it."""
    out = tmp_path_factory.mktemp("experiment")
    run = rp.fit(tiny(epochs=5, model={"width": 16, "depth": 1}, **SMALL), out, control="shuffled")
    conduct([ClockOrCue(cycles=1)], run, run.controls)
    return run


def as_linear(run: rp.Run, seed: int) -> rp.Run:
    """Write into a run, its control and all arms the losses that linear documents have under their
    schedules."""
    problem = LinearDocuments(documents=2 * T, held_out=0, weights=25).problem(seed)
    for one in (run, *run.controls):
        head = one.schedule.values[: 4 * T]
        losses = problem.descend(one.schedule.values).losses
        training(one.path)["losses"][:] = losses[:, :T]
        for folder in sorted((one.path / "experiments" / "clock_or_cue").iterdir()):
            arm = rp.open_run(folder)
            order = np.concatenate([head, arm.schedule.values]).astype(np.int32)
            rows = problem.descend(order).losses[4 * T :]
            training(folder)["losses"][:] = rows[:, : arm.config.documents.count]
    return rp.open_run(run.path)


def test_linear_documents_have_a_cue_and_no_clock(done: rp.Run, tmp_path: Path) -> None:
    shutil.copytree(done.path.parent, tmp_path / "copy")
    found = []
    for seed in (0, 1):
        run = as_linear(rp.open_run(tmp_path / "copy" / "cyclic"), seed)
        found.append(ClockOrCue(cycles=1)(run, *run.controls))
    score = np.mean([d.score.sel(reading="curve").values for d in found], axis=0)
    order = dict(zip(found[0].arm.values, score, strict=True))
    # The review's simulation had .73, .35 and .02 in the same order, backwards, on fresh documents.
    assert order["same"] == pytest.approx(0.73, abs=0.05)
    assert order["reversed"] == pytest.approx(0.38, abs=0.09)
    assert order["fresh"] == pytest.approx(0.02, abs=0.03)
    assert order["fresh"] < order["half_turn"] < order["reversed"]
    cyclic, shuffled = np.mean([d.resultant.sel(cycle=1).values for d in found], axis=0)
    assert cyclic == pytest.approx(0.96, abs=0.03)  # and of shuffled checkpoints .09
    assert shuffled < 0.3
    dip = np.mean([float(d.dip.sel(run="cyclic", cycle=1)) for d in found])
    assert dip == pytest.approx(0.77, abs=0.05)
    one = estimate.get(found[0], "resultant", run="cyclic", cycle=1)
    assert one.p < 1e-6
    assert estimate.get(found[0], "resultant", run="shuffled", cycle=1).p > 0.05
    share = estimate.get(found[0], "share", arm="fresh")
    assert share.low <= share.value < 0.1
    assert share.high < 0.5
    assert said("H8", clock_or_cue=found[0]) != "supported"
    left = ClockOrCue(cycles=1).plot(across(found)).axes[-1]  # a line for each seed, and their mean
    assert [len(line.get_xdata()) for line in left.get_lines()][:3] == [len(found[0].place)] * 3


def test_what_it_trains_is_what_it_says(done: rp.Run) -> None:
    experiment = ClockOrCue(cycles=1)
    arms = experiment.made(done)
    assert set(arms) == {"same", "reversed", "half_turn", "fresh", *(f"omit-{g}" for g in range(5))}
    assert set(experiment.made(done.controls[0])) == {f"omit-{g}" for g in range(5)}
    every = np.concatenate(experiment.left_out(T))
    assert sorted(every) == list(range(T))
    for g, left_out in enumerate(experiment.left_out(T)):
        assert set(arms[f"omit-{g}"].schedule.values) == set(range(T)) - set(left_out)
        assert np.ptp(np.diff([*left_out, left_out[0] + T])) == 0
    assert list(arms["half_turn"].schedule.values) == [*range(10, 20), *range(10)]
    assert not set(arms["fresh"].schedule.values) & set(range(T))
    # In the same order it is the run itself.
    same = done.losses.values[4 * T :, :T]
    assert np.array_equal(arms["same"].losses.values[:, :T], same)


def test_only_what_is_missing_is_trained_again(
    done: rp.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done.path.parent, tmp_path / "copy")
    run = rp.open_run(tmp_path / "copy" / "cyclic")
    arm = run.path / "experiments" / "clock_or_cue" / "reversed"
    before = rp.open_run(arm).losses.values
    shutil.rmtree(arm)
    with pytest.raises(
        rp.InputError, match=r"not trained yet; python -m recovery_probe.experiment"
    ):
        ClockOrCue(cycles=1)(run)
    words = ["experiment", "clock_or_cue", str(run.path), "--cycles", "1"]
    main([*words, "--plan"])
    assert "1 runs to train from checkpoints, 20 episodes" in capsys.readouterr().err
    main(words)
    said = capsys.readouterr()
    assert np.array_equal(rp.open_run(arm).losses.values, before)
    assert "listed: epoch 1 of 1" in said.err
    assert "clock_or_cue: Recovery at age T" in said.out
    assert (run.path / "analyses" / "clock_or_cue.svg").exists()
    assert "clock_or_cue" in (run.path / "report.html").read_text()


def test_killed_inside_an_arm(done: rp.Run, tmp_path: Path) -> None:
    """By SIGKILL, some way into it; the same command goes on, and all comes out as if it had not
    been."""
    shutil.copytree(done.path.parent, tmp_path / "copy")
    run = rp.open_run(tmp_path / "copy" / "cyclic")
    arms = run.path / "experiments" / "clock_or_cue"
    for name in ("reversed", "half_turn", "fresh"):
        shutil.rmtree(arms / name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    words = ["experiment", "clock_or_cue", str(run.path), "--cycles", "1"]
    child = context.Process(target=main, args=(words,))
    child.start()
    while not (arms / "half_turn" / "record.zarr").exists():
        assert child.is_alive()
        time.sleep(0.002)
    time.sleep(0.1)
    child.kill()
    child.join()
    assert rp.open_run(arms / "reversed").provenance["status"] == "complete"
    assert rp.open_run(arms / "half_turn").provenance["status"] != "complete"
    begun = (arms / "reversed" / "provenance.json").stat().st_mtime_ns
    main(words)
    assert (arms / "reversed" / "provenance.json").stat().st_mtime_ns == begun
    assert len(rp.open_run(arms / "half_turn").provenance["resumed"]) == 1, "not begun anew"
    for arm in sorted(arms.iterdir()):
        whole = done.path / "experiments" / "clock_or_cue" / arm.name
        assert not differences(rp.open_run(arm), rp.open_run(whole)), arm.name


def test_without_enough_documents_for_fresh_ones(tmp_path: Path) -> None:
    source = tmp_path / "few.txt"
    source.write_text(
        "\n".join(f"{chr(97 + i) * 3} word {i} and {i * i} {'xyz'[i % 3]}" for i in range(9))
    )
    documents = {"source": str(source), "count": 6, "tokens": 8, "min_tokens": 4, "held_out": 1}
    run = rp.fit(tiny(epochs=2, steps=1, documents=documents), tmp_path / "run")
    found = conduct([ClockOrCue(groups=1, cycles=1)], run)["clock_or_cue"]
    assert "Without the order fresh" in found["verdict"]


@pytest.mark.parametrize(
    ("changes", "after", "words"),
    [
        ({"recorders": []}, 0, "there is no checkpoint .there are some after no episodes"),
        ({}, 9, "begins after 9 epochs, and there is no checkpoint"),
        ({"schedule": {"kind": "fresh", "fixed": 3, "new": 1}}, 0, "its epochs are no cycles"),
    ],
)
def test_where_it_cannot_begin(
    tmp_path: Path, changes: dict[str, object], after: int, words: str
) -> None:
    run = rp.fit(tiny(epochs=2, steps=1, **changes), tmp_path / "run")
    with pytest.raises(rp.InputError, match=words):
        conduct([ClockOrCue(after=after)], run)
    assert not (run.path / "experiments").exists()


def test_a_simulated_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"documents": 5, "held_out": 2, "epochs": 3, "steps": 3}
    run = rp.simulate("linear_documents", tmp_path, **small)
    with pytest.raises(SystemExit) as stop:
        main(["experiment", "clock_or_cue", str(run.path)])
    assert stop.value.code == 2
    assert "was simulated" in capsys.readouterr().err


def test_directions_on_a_circle() -> None:
    assert stats.resultant(np.array([0.5, 0.5])) == pytest.approx((1, 0.5))
    assert stats.resultant(np.array([0, np.pi]))[0] == pytest.approx(0, abs=1e-12)
    draws = np.random.default_rng(0).uniform(0, 2 * np.pi, (4000, 12))
    p = np.array([stats.rayleigh(phases) for phases in draws])
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.01)
    lengths = [stats.resultant(phases)[0] for phases in draws]
    assert np.mean(lengths) == pytest.approx(stats.chance(12), rel=0.05)


MINE = '''
from dataclasses import dataclass
import matplotlib.figure
import xarray as xr
from recovery_probe.experiments import NEEDS, Experiment

@dataclass(frozen=True)
class Twice(Experiment):
    """loss (run): the mean loss after so many epochs more in the same order, nats."""

    # epochs more
    rounds: int = 1

    name = "twice"
    question = "Does another round help?"
    null = "It does not."
    blind_spot = "All else."
    needs = NEEDS

    def arms(self, run):
        order = self.last_order(run) * self.rounds
        return {"more": self.arm(run, "more", order, run.config.documents.count)}

    def compute(self, *runs):
        last = [float(self.made(run)["more"].losses.values[-1].mean()) for run in runs]
        names = [run.provenance["role"] for run in runs]
        return xr.Dataset({"loss": ("run", last, {"units": "nats per token"})}, {"run": names})

    def plot(self, dataset):
        return matplotlib.figure.Figure()

    def verdict(self, dataset):
        return f"{dataset.loss.values[0]:.3f} nats."
'''


def test_an_experiment_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file, with a setting; a flag that is given twice means the last."""
    (tmp_path / "mine.py").write_text(MINE)
    run = rp.fit(tiny(epochs=2, recorders=["checkpoints"]), tmp_path / "run")
    words = ["experiment", f"{tmp_path / 'mine.py'}:Twice", str(run.path)]
    main([*words, "--rounds", "3", "--rounds", "2"])
    told = capsys.readouterr()
    assert "1 runs to train from checkpoints, 10 episodes" in told.err
    arm = rp.open_run(run.path / "experiments" / "twice" / "more")
    assert f"twice: {arm.losses.values[-1].mean():.3f} nats." in told.out
    np.testing.assert_array_equal(arm.losses.values[:6], run.losses.values[5:])
    with pytest.raises(SystemExit):
        main([*words, "--rounds", "1"])
    assert "made with other settings of the experiment" in capsys.readouterr().err
    main([*words, "--rounds", "2"])
    assert "to train" not in capsys.readouterr().err
