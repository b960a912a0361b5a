"""Sweeps: data, planned and trained anywhere, stopped and gone on with, compared."""

from __future__ import annotations

import csv
import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import differences
from sweeping import TINY, runs
from test_people_and_machines import refused

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.record.lock import Lock
from recovery_probe.sweep import Sweep, in_process, read, sweep
from recovery_probe.sweep import spec as specs
from recovery_probe.sweep.compare import later_online, trend


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep of `TINY`, trained in this process. Do not write to it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.toml").write_text(TINY)
    sweep(read(folder / "tiny.toml"), folder / "out", estimate=False)
    return folder / "out"


# Data


@pytest.mark.parametrize("name", specs.named())
def test_the_named_ones_can_be(name: str, tmp_path: Path) -> None:
    spec = read(name)
    assert spec.about
    assert spec.name == name
    jobs = specs.planned(spec, tmp_path)
    points = np.prod([len(labels) for labels in spec.dims.values()])
    assert len(jobs) == points * (1 + len(spec.control))
    assert {job.point.role for job in jobs} == {"run", "control"}
    for one in spec.paper:
        assert one.source


def test_the_grid_of_all_axes_with_seeds(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        TINY.replace("seeds = [0]", "seeds = [0, 7]")
        + '[axes.size]\n"model.width" = [32, 64]\n"model.heads" = [2, 4]\n'
    )
    spec = read(tiny, {"steps": 2})
    assert spec.dims == {"model.depth": (1, 2), "size": (32, 64), "seed": (0, 7)}
    jobs = specs.planned(spec, tmp_path)
    found = [
        (s.model.depth, s.model.width, s.model.heads, s.seed.order, s.schedule.kind, s.steps)
        for s in (job.point.settings for job in jobs)
    ]
    assert found == [
        (depth, width, heads, seed, kind, 2)
        for seed, depth, (width, heads), kind in itertools.product(
            (0, 7), (1, 2), ((32, 2), (64, 4)), ("cyclic", "shuffled")
        )
    ]
    assert len({job.path for job in jobs}) == len(jobs)
    assert jobs[0].path == tmp_path / "depth=1" / "size=32" / "seed=0" / "cyclic"


WRONG = {
    "unknown key": ("seeds = [0]", "seed = [0]", "unknown 'seed'; did you mean 'seeds'"),
    "unknown preset": ('"quickstart"', '"quickstar"', "unknown preset 'quickstar'"),
    "unknown setting": ("steps = 3", "stesp = 3", "unknown setting stesp; did you mean 'steps'"),
    "unknown on an axis": (
        '"model.depth" = [1, 2]',
        '"model.depth" = [1, 2]\n"model.dept" = [1]',
        "the point seed = 0, model.depth = 1, model.dept = 1: .*unknown setting model.dept",
    ),
    "no axis": ('"model.depth" = [1, 2]', "", "no axes"),
    "no list": ("[1, 2]\n\n", "3\n\n", "model.depth = 3: expected a list of values"),
    "twice": ("[1, 2]\n\n", "[1, 1]\n\n", "model.depth: twice the same value among 1, 1"),
    "a value": ("[1, 2]\n\n", "[1, 0]\n\n", "the point seed = 0, model.depth = 0: .*model.depth"),
    "seeds": ("seeds = [0]", "seeds = [0, 0]", r"seeds = \[0, 0\]: expected different"),
    "a seed": ("seeds = [0]", 'seeds = ["a"]', "seeds.0 = 'a'"),
    "control": ('["shuffled"]', '["cyclic"]', "would compare a cyclic run with itself"),
    "paper's axis": ('axis = "model.depth"', 'axis = "depth"', "paper: no axis 'depth'"),
    "paper's places": ("at = [4, 8]", "at = [4]", "paper: 1 places and 2 values"),
    "paper's key": ("source = ", "sauce = ", "paper.0"),
    "no TOML": ("seeds = [0]", "seeds = 0]", "cannot be read as TOML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_before_any_work(case: str, tiny: Path, tmp_path: Path) -> None:
    before, after, message = WRONG[case]
    assert before in TINY
    tiny.write_text(TINY.replace(before, after, 1))
    with pytest.raises(rp.InputError, match=message):
        sweep(read(tiny), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unequal_lists_are_named(tiny: Path) -> None:
    tiny.write_text(TINY + '[axes.a]\n"steps" = [1, 2]\n"epochs" = [3]\n')
    with pytest.raises(rp.InputError, match=r"axes: a: .* got 2 of steps, 1 of epochs"):
        read(tiny)


def test_names_are_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["sweep"])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in specs.named())
    assert "did you mean 'depth-laptop'" in refused(capsys, ["sweep", "depth-laptp"])
    assert "expected NAME=VALUE" in refused(capsys, ["sweep", "depth-laptop", "--set", "steps"])
    assert "workers = 0" in refused(
        capsys, ["sweep", "depth-laptop", "--engine", "processes", "--workers", "0"]
    )
    assert "no sbatch here" in refused(capsys, ["sweep", "depth-laptop", "--engine", "slurm"])
    wrong = ["--engine", "slurm", "--cluster", "debug", "--slurm", "timeout=3"]
    assert "--slurm: " in refused(
        capsys, ["sweep", "depth-laptop", "--out", str(tmp_path / "out"), *wrong]
    )


# Training


def test_what_is_there_afterwards(whole: Path) -> None:
    found = xr.open_zarr(whole / "sweep.zarr")
    assert found.recovery.dims == ("model.depth", "seed", "run")
    assert found.gain.dims == ("model.depth", "seed", "control")
    assert found.run.values.tolist() == ["cyclic", "shuffled"]
    with open(whole / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["model.depth"] for row in rows] == ["1", "2"]
    for row, run in zip(rows, [r for r in runs(whole) if r.path.name == "cyclic"], strict=True):
        assert row["status"] == row["status_shuffled"] == "complete"
        assert int(row["parameters"]) == run.provenance["parameters"]
        # The first loss of each episode from epoch 2 on, by hand.
        losses = run.train_loss.values.reshape(3, 5, 3)
        assert float(row["online"]) == pytest.approx(losses[1:, :, 0].mean(), rel=1e-5)
        at = found.sel({"model.depth": int(row["model.depth"])}).squeeze()
        assert float(row["gain_shuffled"]) == pytest.approx(float(at.gain), rel=1e-4)
    page = (whole / "sweep.html").read_text()
    assert "Two depths" in page
    assert "nowhere" in page
    assert "not complete" not in page
    asked = re.findall(r'\s(?:src|srcset|href|action)="([^"]*)"', page)
    assert asked
    assert not [address for address in asked if not address.startswith(("data:", "#"))]
    for job in specs.planned(read(whole.parent / "tiny.toml"), whole):
        assert job.config.exists()
        assert rp.open_run(job.path).config == job.point.settings
    controls = rp.open_run(whole / "depth=1" / "seed=0" / "cyclic").controls
    assert [c.path.name for c in controls] == ["shuffled"]


def test_recovery_is_what_the_analysis_says(whole: Path, tmp_path: Path) -> None:
    from recovery_probe.analyze import analyze

    run = rp.open_run(whole / "depth=2" / "seed=0" / "cyclic")
    analyze(run, run.controls, ["age_curve"], out=tmp_path / "analysis")
    theirs = xr.open_zarr(tmp_path / "analysis" / "analyses" / "age_curve.zarr")
    ours = xr.open_zarr(whole / "sweep.zarr").sel({"model.depth": 2, "seed": 0})
    at = theirs.sel(epoch=int(ours.epoch))
    np.testing.assert_array_equal(ours.recovery.values, at.score.sel(reading="curve").values)
    np.testing.assert_array_equal(ours.excess.values, at.excess.values)


def test_again_does_nothing_more_and_more_points_are_added(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(read(tiny, {"epochs": 2}), out, estimate=False)
    before = {r.path: (r.path / "provenance.json").stat().st_mtime_ns for r in runs(out)}
    tiny.write_text(TINY.replace("[1, 2]", "[1, 2, 3]", 1))
    sweep(read(tiny, {"epochs": 2}), out, estimate=False)
    after = {r.path: (r.path / "provenance.json").stat().st_mtime_ns for r in runs(out)}
    assert len(after) == 6
    assert {path: after[path] for path in before} == before
    with pytest.raises(rp.InputError, match=r"holds another run .steps is 3 there, and 2 here"):
        sweep(read(tiny, {"steps": 2, "epochs": 2}), out)


def test_one_that_fails_stops_no_other(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that only its network can refuse."""
    tiny.write_text(TINY.replace("model.depth", "model.heads").replace("[1, 2]", "[3, 2]", 1))
    out = tmp_path / "out"
    found = sweep(read(tiny, {"epochs": 2}), out, estimate=False)
    assert [r.config.model.heads for r in runs(out)] == [2, 2]
    assert found.status.values[:, 0, 0].tolist() == ["planned", "complete"]
    assert np.isnan(found.recovery.values[0]).all()
    said = capsys.readouterr().err
    assert "2 runs complete, 2 failed" in said
    assert "heads=3/seed=0/cyclic: " in said
    with open(out / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "failed", "complete", "complete"]
    assert "heads" in rows[0]["message"]
    assert "2 of 4 runs are not complete" in (out / "sweep.html").read_text()
    other = tmp_path / "other"
    sweep(read(tiny, {"epochs": 2}), other, fail_fast=True, estimate=False)
    assert runs(other) == []


def test_a_full_disk(
    whole: Path, tiny: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said beforehand; and when it fills meanwhile, what was trained stays, and once there is room
    the same call does the rest."""
    out, filler = small_disk / "out", small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 2_000_000))
    said = refused(capsys, ["sweep", str(tiny), "--out", str(out)])
    assert "what is recorded may take 3." in said
    assert "make room, or choose another --out" in said
    assert runs(out) == []
    with pytest.raises(OSError, match="No space left"):  # for the page
        sweep(read(tiny), out, estimate=False)
    assert 0 < len(runs(out)) < 4
    assert "the disk has" in capsys.readouterr().err.splitlines()[-1]
    filler.unlink()
    sweep(read(tiny), out, estimate=False)
    assert len(runs(out)) == 4
    for run in runs(out):
        assert differences(run, rp.open_run(whole / run.path.relative_to(out))) == []


def test_two_at_once(whole: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lock = Lock(out)
    lock.begin()
    with pytest.raises(rp.InputError, match=f"being written by process {os.getpid()} on "):
        sweep(read(tiny), out)
    lock.close()
    (out / "depth=1" / "seed=0" / "cyclic").mkdir(parents=True)
    with pytest.raises(rp.InputError, match="in the way, and not a run"):
        sweep(read(tiny), out)


def test_the_plan_alone(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", str(tiny), "--out", str(tmp_path / "out"), "--plan", "--set", "epochs=2"])
    said = capsys.readouterr().err
    assert "4 runs, 0 done; 4 to train: about " in said
    assert " MB" in said
    assert not (tmp_path / "out").exists()


# Comparison


def brute_force(values: np.ndarray[Any, Any]) -> float:
    """p that L, the sum over levels of level times the sum of ranks, is as large by chance."""
    levels = np.arange(1, values.shape[1] + 1)
    ranks = values.argsort(axis=1).argsort(axis=1) + 1
    observed = (ranks @ levels).sum()
    orders = [np.array(p) @ levels for p in itertools.permutations(levels)]
    sums = np.array([sum(each) for each in itertools.product(orders, repeat=len(values))])
    return float((sums >= observed).mean())


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_trend_test_is_exact(order: list[int]) -> None:
    values = np.array(order, dtype=float).reshape(3, 4)
    up, down, blocks = trend(values)
    assert blocks == 3
    assert up == pytest.approx(brute_force(values), abs=1e-9)
    assert down == pytest.approx(brute_force(-values), abs=1e-9)


def test_the_trend_test_leaves_out_what_is_not_whole() -> None:
    grows = np.array([[0.0, 1, 2, 3], [1, 2, 3, 4], [np.nan, 1, 2, 3]])
    up, down, blocks = trend(grows)
    assert blocks == 2
    assert up < 0.01 < 0.9 < down
    assert np.isnan(trend(grows[1:])[0])
    two = np.array([[0.0, 1.0], [0.1, 1.2], [0.0, 0.9]])
    assert trend(two)[0] < 0.05 < 0.9 < trend(two)[1]


def planted(tiny: Path, out: Path, slope: float) -> xr.Dataset:
    """A sweep whose recovery goes along the axis by a slope, with noise."""
    from recovery_probe.sweep import compare, page

    tiny.write_text(TINY.replace("[1, 2]", "[1, 2, 3, 4]", 1).replace("[0]", "[0, 1, 2]"))
    spec: Sweep = read(tiny)
    dataset = compare.numbers(spec, specs.planned(spec, out))
    noise = np.random.default_rng(0).normal(0, 0.01, dataset.recovery.shape)
    dataset["recovery"] = dataset.recovery.copy(data=noise)
    dataset["recovery"] += slope * dataset["model.depth"]
    texts = [v.text for v in compare.directions(dataset, spec, spec.axes[0])]
    assert page.draw(dataset, spec, spec.axes[0]) is not None
    return dataset.assign_attrs(verdicts=texts)


@pytest.mark.parametrize(
    ("slope", "said"), [(0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot be told")]
)
def test_what_was_published_is_set_beside(
    slope: float, said: str, tiny: Path, tmp_path: Path
) -> None:
    verdict, *others = planted(tiny, tmp_path, slope).attrs["verdicts"]
    assert verdict.endswith(f"Paper (nowhere): it grows: {said}.")
    assert "no test, of 0 whole series" in others[0]


def test_online_loss_of_any_schedule(tmp_path: Path) -> None:
    from recovery_probe.testing import toy_settings

    run = rp.fit(toy_settings(schedule={"kind": "shuffled"}, recorders=[]), tmp_path / "run")
    seen: set[int] = set()
    kept = []
    for episode, document in enumerate(run.schedule.values.tolist()):
        if document in seen:
            kept.append(float(run.train_loss[3 * episode]))
        seen.add(document)
    assert later_online(run) == pytest.approx(np.mean(kept))
    assert in_process()().submit(len, [1]).result() == 1
