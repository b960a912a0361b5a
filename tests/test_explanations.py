"""The page of explanations: its rules, what planted truths come out as, and the whole of it on a
network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import tiny
from explained import said
from learned import LearnedComponent
from recovery_probe_analyses import kernel_by_lag, linearised
from recovery_probe_analyses.age_curve import AgeCurve
from recovery_probe_analyses.mechanism import (
    COSTS,
    LAST,
    READ,
    RECORDED,
    SHARES,
    Mechanism,
    check_recovery,
    decisions,
)

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.analyze import estimate, plots
from recovery_probe.analyze.across import across
from recovery_probe.analyze.analysis import RUN
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.analyze.perform import analyze
from recovery_probe.cli import main
from recovery_probe.experiments import Experiment
from recovery_probe.experiments.conduct import conduct
from recovery_probe.experiments.rules import CLAIMS, RULES, together
from recovery_probe.record.store import write_zarr

HIGH, LOW = (0.95, 1.05), (-0.02, 0.02)


def test_every_explanation_has_a_prediction_and_every_prediction_its_number() -> None:
    assert {rule.hypothesis for rule in RULES} == set(CLAIMS)
    assert len(READ) == len(RULES)
    parts = {part.name for part in Mechanism().parts()}
    assert {rule.part for rule in RULES} <= parts
    for rule in RULES:
        (a, b), (c, d) = rule.supports, rule.contradicts
        assert b <= c or d <= a, f"{rule.hypothesis}: {rule.measure} could do both"


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "contradicted"], "contradicted"),
        (["supported", "undecided"], "undecided"),
        (["supported", "not measured"], "undecided"),
        (["not measured"], "not measured"),
    ],
)
def test_predictions_together(words: list[str], whole: str) -> None:
    assert together(words) == whole  # type: ignore[arg-type]


def test_an_interval_decides_where_it_lies_as_a_whole() -> None:
    rule = next(r for r in RULES if r.hypothesis == "H1" and r.part == "linearised")
    assert rule.decide(0.1, 0.4) == "supported"
    assert rule.decide(0.95, 1.4) == "contradicted"
    assert rule.decide(0.4, 0.95) == "undecided"
    assert rule.decide(np.nan, np.nan) == "not measured"


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        # Linear documents: Q is 1 by construction, the kernel cannot grow, the expansion is exact,
        # and recovery goes with the shared directions (.69 without any, .68 with others, 0).
        (
            {"linearised": HIGH, "kernel_by_lag": (-0.01, -1e-9), "state_return": (0.2, 0.6)}
            | {"remove_subspace": (0.6, 1.0)},
            {"H1": "contradicted", "H2": "supported"},
        ),
        (
            {"linearised": LOW, "kernel_by_lag": (0.1, 0.3), "state_return": (-0.2, 0.1)}
            | {"remove_subspace": (-0.1, 0.05)},
            {"H1": "supported", "H2": "contradicted"},
        ),
        ({"readout": LOW}, {"H4": "supported"}),
        ({"readout": HIGH}, {"H4": "contradicted"}),
        ({"transplant": HIGH}, {"H5": "supported"}),
        ({"optimizer_memory": LOW}, {"H6": "supported"}),
        ({"optimizer_memory": (1.0, 1.0)}, {"H6": "contradicted"}),
        ({"clock_or_cue": LOW}, {"H8": "contradicted"}),
        ({"clock_or_cue": HIGH}, {"H8": "supported"}),
    ],
)
def test_what_planted_numbers_come_out_as(
    planted: dict[str, tuple[float, float]], expected: dict[str, str]
) -> None:
    for hypothesis, word in expected.items():
        own = [rule for rule in RULES if rule.hypothesis == hypothesis]
        assert together([rule.decide(*planted[rule.part]) for rule in own]) == word


def test_features_that_must_be_learned_are_found(tmp_path: Path) -> None:
    """And no less where they are kept once they are learned: a kernel held then has them."""
    process, times = LearnedComponent(), (0, 80)
    run = rp.simulate(process, tmp_path)
    runs, done = [run, *run.controls], run.episodes_done
    held = [
        [(process.train(one.schedule.values, t)[0][t:], done - t) for t in times] for one in runs
    ]
    found = linearised.numbers(held, runs, times)
    of_run = [process.train(one.schedule.values)[1] for one in runs]
    kernels = np.array([[process.kernel(layers[t]) for t in (0, done)] for layers in of_run])
    grown = kernel_by_lag.numbers(np.stack([kernels] * 2), np.ones((2, 2, 2)), runs, (0, done))
    assert said("H1", linearised=found, kernel_by_lag=grown) == "supported"
    q = found.q.sel(run="cyclic", reading="curve")
    np.testing.assert_allclose(q, [0, 1], atol=0.15)


@pytest.mark.parametrize(("process", "there"), [("linear_documents", True), ("age_only", False)])
def test_no_share_of_a_recovery_that_is_not_there(
    process: str, there: bool, tmp_path: Path
) -> None:
    run = rp.simulate(process, tmp_path)
    found = AgeCurve()(run, *run.controls)
    if there:
        check_recovery(found)
        return
    with pytest.raises(rp.Missing, match="no recovery to have a share of"):
        check_recovery(found)


def test_whatever_is_a_share_of_recovery_asks_whether_there_is_any() -> None:
    words = ("recovery", "restore")
    shares = {rule.part for rule in RULES if any(word in rule.measure for word in words)}
    assert shares == set(SHARES)


def test_what_is_recorded_takes_no_time(tmp_path: Path) -> None:
    """Of two runs, in epochs of each: three recorders, and the training that they want, less."""
    epochs = []
    for recorders in ((), RECORDED):
        run = rp.fit(tiny(recorders=("checkpoints", *recorders)), tmp_path / f"{len(recorders)}")
        each = run.provenance["seconds"] / run.config.epochs
        epochs.append(Mechanism().seconds(run, []) / each)
        assert Mechanism().seconds(run, [run]) == pytest.approx(2 * epochs[-1] * each)
    assert epochs[0] - epochs[1] == pytest.approx(LAST + sum(COSTS[name] for name in RECORDED))
    assert epochs[1] > 0


def test_seeds_that_agree_to_the_digit_decide() -> None:
    """Where no seed differs from another, their spread gives no interval, and there is no doubt."""
    value = np.full(len(RULES), 0.5)
    place = next(i for i, rule in enumerate(RULES) if rule.hypothesis == "H8")
    value[place] = 0
    seed = xr.Dataset(coords={"prediction": np.arange(len(RULES))}, attrs={"unit": "documents"})
    estimate.put(seed, "measured", ("prediction",), Estimate(value, value - 1, value + 1))
    found = across([seed.copy(deep=True) for _ in range(3)])
    assert not np.isfinite(estimate.get(found, "measured").low[place])
    assert decisions(found)[place] == "contradicted"
    assert decisions(seed)[place] == "undecided"


@dataclass(frozen=True)
class Brought(Experiment):
    """Brings one analysis together, and trains nothing."""

    name, question, null, blind_spot = "brought", "Is it there?", "Nothing.", "All else."
    needs = (RUN,)

    def arms(self, run: rp.Run) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Any]:
        return [AgeCurve()]

    def compute(self, *runs: rp.Run) -> xr.Dataset:
        dataset = xr.Dataset(attrs={"unit": "documents"})
        found = self.parts()[0].stored(runs[0])
        estimate.put(dataset, "there", (), Estimate(np.array(float(found is not None))))
        return dataset

    def plot(self, dataset: xr.Dataset) -> Any:
        return plots.mosaic([["all"]])[0]

    def verdict(self, dataset: xr.Dataset) -> str:
        return f"{float(dataset.there):.0f}"


def test_what_is_brought_together_stands_over_seeds_beside_it(tmp_path: Path) -> None:
    """As each run has it: nothing of it is done again."""
    runs = [rp.simulate("linear_documents", tmp_path / str(s), seed=s) for s in range(3)]
    for run in runs:
        analyze(run, run.controls, ["age_curve"])
        path = run.path / "analyses" / "age_curve.zarr"
        changed = xr.open_zarr(path, consolidated=None).load()
        changed.gain[:] = 7
        shutil.rmtree(path)
        write_zarr(changed, path)
    controls = [control for run in runs for control in run.controls]
    found = conduct([Brought()], runs, controls, out=tmp_path / "all")
    assert found["brought"]["verdict"] == "1"
    assert list(found["analyses"]) == ["age_curve", "brought"]
    over = xr.open_zarr(tmp_path / "all" / "analyses" / "age_curve.zarr", consolidated=None)
    assert over.attrs["unit"] == "3 seeds"
    assert (over.gain == 7).all()


@pytest.mark.slow
def test_the_whole_of_it_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = {"count": 6, "tokens": 8, "min_tokens": 8, "held_out": 2}
    model = {"width": 16, "depth": 1}
    recorders = ["checkpoints"]
    run = rp.fit(
        tiny(epochs=4, steps=2, documents=documents, model=model, recorders=recorders),
        tmp_path,
        control="shuffled",
    )
    main(["experiment", "mechanism", str(tmp_path), "--plan"])
    assert "runs to train from checkpoints" in capsys.readouterr().err
    assert not (run.path / "experiments").exists()
    main(["experiment", "mechanism", str(tmp_path)])
    printed = capsys.readouterr()
    assert all(f"{name} ({claim})" in printed.out for name, claim in CLAIMS.items())
    run = rp.open_run(run.path)
    for part in Mechanism().parts():
        assert (run.path / "analyses" / f"{part.name}.zarr").exists() or (
            f"without {part.name}" in printed.err
        )
    # So small a network brings nothing back: that is said before any of it is done.
    assert "no recovery to have a share of" in printed.err.partition("mechanism: clock_or_cue")[0]
    assert "H6 (memory of the optimizer): not measured" in printed.out
    report = (run.path / "report.html").read_text()
    assert "mechanism" in report
    before = {p: p.stat().st_mtime_ns for p in (run.path / "experiments").rglob("provenance.json")}
    main(["experiment", "mechanism", str(tmp_path)])
    again = capsys.readouterr()
    assert again.out.splitlines()[0] == printed.out.splitlines()[0]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    found = plugins.made(plugins.find("experiments", "mechanism"), {}, "mechanism").stored(run)
    assert found is not None
    assert len(decisions(found)) == len(RULES)
    assert estimate.get(found, "measured").low.shape == (len(RULES),)
