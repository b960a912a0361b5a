"""A report's two parts; what stands beside its numbers: twins, and plain least squares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import tiny
from recovery_probe_analyses.age_curve import AgeCurve
from recovery_probe_analyses.gradient_similarity import GradientSimilarity

import recovery_probe as rp
from recovery_probe import config
from recovery_probe.analyze import analyze
from recovery_probe.analyze.salient import salient

FEW = ["age_curve", "recovery"]


def copied(run: rp.Run, path: Path) -> rp.Run:
    """A copy, with its control beside it."""
    for one in (run, *run.controls):
        shutil.copytree(one.path, path / one.path.name)
    return rp.open_run(path / run.path.name)


def declaring(run: rp.Run, **outcome: Any) -> rp.Run:
    """The run as if this had been declared before it began."""
    settings = rp.changed(run.config, outcome=outcome)
    (run.path / "config.toml").write_text(config.to_toml(settings))
    file = run.path / "provenance.json"
    facts = json.loads(file.read_text()) | {"outcome": config.declared(settings)}
    file.write_text(json.dumps(facts))
    return rp.open_run(run.path)


def test_the_primary_part_says_what_was_declared(pair: rp.Run, tmp_path: Path) -> None:
    run = declaring(
        copied(pair, tmp_path), primary="gain", epoch=1, window=0.5, smallest=0.3, seeds=1
    )
    summary = analyze(run, run.controls, FEW)
    found = summary["primary"]
    assert found["declared"].startswith("gain on arrival of epoch 1, from 0.5 of the wait")
    assert "0.3 nats or more; 1 seed, whatever they show" in found["declared"]
    assert found["doubts"] == []
    (one,) = found["found"]
    estimates = summary["age_curve"]["estimates"]["gain"]
    (same,) = (e for e in estimates if e["epoch"] == 1)
    assert (one["value"], one["low"]) == (same["value"], same["low"])
    assert "one run decides nothing" in one["said"]
    text = (run.path / "report.html").read_text()
    assert text.index('id="picture"') < text.index('id="primary"') < text.index('id="exploratory"')
    assert found["declared"] in text


def test_what_was_not_declared_is_said_to_be_so(pair: rp.Run, tmp_path: Path) -> None:
    run = copied(pair, tmp_path)
    settings = rp.changed(run.config, **{"outcome.smallest": 0.5})
    (run.path / "config.toml").write_text(config.to_toml(settings))  # after the run
    (first, second) = analyze(rp.open_run(run.path), (), FEW)["primary"]["doubts"][:2]
    assert "do not hold what was declared before the first step" in first
    assert second.startswith("1 of 5 seeds, not yet the number declared")


def test_over_seeds_it_is_decided(tmp_path: Path) -> None:
    """Seeds of a process without anticipation: equal within the bound, or undecided, and never
    more."""
    made = [
        rp.simulate("age_only", tmp_path / str(s), documents=12, epochs=4, seed=s, noise=0.02)
        for s in range(5)
    ]
    controls = [c for run in made for c in run.controls]
    found = analyze(made, controls, FEW, out=tmp_path / "all")["primary"]
    (one,) = found["found"]
    assert one["n"] == 5
    assert one["said"].startswith("equal within ±0.05 nats")
    assert found["doubts"] == []


def test_a_twin_stands_beside_every_estimate(tmp_path: Path) -> None:
    settings = tiny(recorders=["token_losses"])
    run = rp.fit(settings, tmp_path / "x", control=["shuffled", "twin"])
    summary = analyze(run, run.controls)
    (twin,) = run.twins
    own = analyze(twin, run.controls, FEW, out=tmp_path / "twin")
    for name in ("gain", "score"):
        theirs = own["age_curve"]["estimates"][name]
        for ours, other in zip(summary["age_curve"]["estimates"][name], theirs, strict=True):
            assert ours["twin"] == other["value"]
    assert summary["twin_distance"]["verdict"].startswith("Rounding alone moves")
    assert isinstance(summary["near_twin"], list)
    text = (run.path / "report.html").read_text()
    assert "twin_distance" in text
    assert "The run's twin, which differs in last digits alone" in text


def test_the_twins_distance_by_hand(tmp_path: Path) -> None:
    run = rp.fit(tiny(epochs=2, recorders=[]), tmp_path / "x", control="twin")
    distance = analyze(run, (), ["twin_distance"])
    apart = np.abs(run.losses.values - run.twins[0].losses.values)[:, :5].mean(axis=1)
    assert f"up to {apart.max():.2g} nats" in distance["twin_distance"]["verdict"]
    with pytest.raises(rp.Missing, match="--control twin"):
        analyze(run.twins[0], (), ["twin_distance"])


def test_least_squares_of_the_runs_own_shape(pair: rp.Run, tmp_path: Path) -> None:
    run = copied(pair, tmp_path)
    found = analyze(run, run.controls, [*FEW, "weight_cyclicity"])["least_squares"]
    assert "--documents 5 --held_out 2 --epochs 3 --steps 3" in found["command"]
    names = {tuple(row[:2]) for row in found["rows"]}
    assert ("age_curve", "gain") in names
    assert ("weight_cyclicity", "cycle_share") in names
    by_name = {tuple(row[:2]): row[2:] for row in found["rows"]}
    linear = rp.simulate(
        "linear_documents", tmp_path / "linear", documents=5, held_out=2, epochs=3, steps=3
    )
    assert "least_squares" not in analyze(linear, linear.controls, FEW), "it is that itself"
    one = salient(rp_age(linear))["gain"]
    assert by_name["age_curve", "gain"][2] == one.cell
    # Another call keeps what this one found of other analyses.
    kept = analyze(run, run.controls, ["recovery"])["least_squares"]["rows"]
    assert {tuple(row[:2]) for row in kept} == names
    text = (run.path / "report.html").read_text()
    assert "The same on plain least squares" in text
    assert "How often these numbers err" in text


def test_what_fails_on_least_squares_fails_there_alone(pair: rp.Run, tmp_path: Path) -> None:
    """A setting for this run's size, and a third party's analysis that does as it likes."""
    run = copied(pair, tmp_path)

    class Picky(AgeCurve):
        name = "picky"

        def compute(self, *runs: rp.Run) -> xr.Dataset:
            if "simulated" in runs[0].provenance:
                raise KeyError("tokens")
            return super().compute(*runs)

    summary = analyze(run, run.controls, [GradientSimilarity(block=1), Picky()])
    assert set(summary["analyses"]) == {"gradient_similarity", "picky"}
    assert summary["least_squares"]["rows"] == []


def rp_age(run: rp.Run) -> Any:
    return AgeCurve()(run, *run.controls)
