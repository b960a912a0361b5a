"""recovery, loss_curves and online_loss: their numbers by hand, and what they leave out."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import cut, planted, tiny, training
from recovery_probe_analyses.loss_curves import LossCurves
from recovery_probe_analyses.online_loss import OnlineLoss
from recovery_probe_analyses.recovery import Recovery

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import analyze


def values(found: dict[str, Any], name: str, **places: object) -> list[float | None]:
    """Of an estimate of a summary, at these labels."""
    records = found["estimates"][name]
    return [r["value"] for r in records if places.items() <= r.items()]


@pytest.fixture
def forgetful(pair: rp.Run, tmp_path: Path) -> rp.Run:
    """A run in which every document is forgotten between any two episodes on it: noise, but
    lowest right after the document's own episode."""
    losses = np.random.default_rng(0).uniform(2, 3, pair.losses.shape)
    for episode, document in enumerate(pair.schedule.values):
        losses[episode + 1, document] = 1.0
    return planted(pair, tmp_path / "forgetful", losses)


def test_recovery_by_hand(forgetful: rp.Run) -> None:
    """The scores again, from the paper's words alone."""
    T, losses = 5, forgetful.losses.values
    numbers = Recovery()(forgetful)
    per_document = []
    for n in (1, 2):
        scores = []
        for d in range(T):
            between = losses[(n - 1) * T + d + 1 : n * T + d + 1, d]
            scores.append((between.max() - between[-1]) / (between.max() - between[0]))
        per_document.append(np.mean(scores))
    score = numbers.score.isel(run=0)
    np.testing.assert_allclose(score.sel(reading="per_document"), per_document)
    averaged = [np.mean([losses[x + d, d] for d in range(T)]) for x in range(2 * T + 2)]
    curve = [
        (max(c) - c[-1]) / (max(c) - c[0])
        for c in (averaged[1 : T + 1], averaged[T + 1 : 2 * T + 1])
    ]
    np.testing.assert_allclose(score.sel(reading="curve"), curve)
    assert (
        ((numbers.score_low <= numbers.score) & (numbers.score <= numbers.score_high))
        .isel(run=0)
        .all()
    )


def test_intervals_are_those_of_resampled_documents(forgetful: rp.Run) -> None:
    """Every resample laid out, document by document."""
    T, losses = 5, forgetful.losses.values[:, :5]
    drawn = forgetful.rng("bootstrap").integers(T, size=(2000, T))
    each = np.array([losses[d : d + 2 * T + 2, d] for d in range(T)])  # (document, row)
    curves = each[drawn].mean(axis=1)
    found = LossCurves()(forgetful).isel(run=0)
    bounds = np.quantile(curves, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([found.aligned_low, found.aligned_high], bounds)
    between = [curves[:, 1 : T + 1], curves[:, T + 1 : 2 * T + 1]]
    scores = [(b.max(axis=1) - b[:, -1]) / (b.max(axis=1) - b[:, 0]) for b in between]
    numbers = Recovery()(forgetful).isel(run=0)
    curve, mean = numbers.sel(reading="curve"), numbers.sel(reading="per_document")
    bounds = np.quantile(scores, [0.025, 0.975], axis=1)
    np.testing.assert_allclose([curve.score_low, curve.score_high], bounds)
    _, *bounds = stats.studentised_interval(
        numbers.document_score.values.T, forgetful.rng("bootstrap")
    )
    np.testing.assert_allclose([mean.score_low, mean.score_high], bounds)


def test_a_negative_interval_is_drawn_whole(pair: rp.Run) -> None:
    numbers = Recovery()(pair)
    numbers["score_low"] = numbers.score_low - 2
    (axes,) = Recovery().plot(numbers).axes
    assert axes.get_ylim()[0] <= float(numbers.score_low.min())


def test_curve_reading_of_a_shuffled_run_is_refused_in_words(pair: rp.Run) -> None:
    numbers = Recovery()(pair.controls[0])
    assert np.isnan(numbers.score.sel(reading="curve")).all()
    assert np.isfinite(numbers.score.sel(reading="per_document")).any()
    found = Recovery().summary(numbers)
    assert "no common period" in found["left_out"]["shuffled"]["curve"]
    assert values(found, "score", reading="curve") == [None, None]


def test_left_out_documents_are_counted_with_their_reason(
    forgetful: rp.Run, tmp_path: Path
) -> None:
    losses = forgetful.losses.values.copy()
    losses[:, 1] = np.linspace(5, 1, len(losses))  # document 1 only ever falls
    found = Recovery().summary(Recovery()(planted(forgetful, tmp_path / "run", losses)))
    for reasons in found["left_out"]["cyclic"]["per_document"]:
        assert list(reasons.values()) == [1]
        assert "only fell" in next(iter(reasons))
    assert "4 of 5 documents count" in found["verdict"]


def test_nothing_forgotten_has_no_score(pair: rp.Run, tmp_path: Path) -> None:
    losses = np.repeat(np.linspace(5, 1, len(pair.losses))[:, None], 7, axis=1)
    dataset = Recovery()(planted(pair, tmp_path / "run", losses))
    found = Recovery().summary(dataset)
    assert values(found, "score") == [None] * 4
    assert [list(r.values()) for r in found["left_out"]["cyclic"]["per_document"]] == [[5], [5]]
    assert "no score" in found["verdict"]
    Recovery().plot(dataset)


def test_no_difference_is_said_to_be_none(pair: rp.Run, tmp_path: Path) -> None:
    """A run held against itself: the difference is 0, and the verdict claims nothing."""
    twin = planted(pair, tmp_path / "twin", pair.losses.values)
    found = Recovery().summary(Recovery()(pair, twin))
    differences = [(r["control"], r["value"]) for r in found["estimates"]["difference"]]
    assert differences == [("cyclic (twin)", 0.0)] * 2
    assert "one run decides nothing" in found["verdict"]


def test_online_loss_by_hand(pair: rp.Run) -> None:
    numbers = OnlineLoss()(pair, *pair.controls)
    for r, run in enumerate([pair, *pair.controls]):
        first = run.train_loss.values[::3]
        by_epoch = first.reshape(3, 5).mean(axis=1)
        np.testing.assert_allclose(numbers["mean"].values[r], by_epoch)
        np.testing.assert_allclose(numbers.later.values[r], by_epoch[1:].mean())


def test_loss_curves_by_hand(pair: rp.Run) -> None:
    numbers = LossCurves(focal=2)(pair, *pair.controls)
    assert numbers.focal.values[0].tolist() == pair.losses.values[:, 2].tolist()
    assert numbers.before.values[0].tolist() == [2, 7, 12]
    np.testing.assert_allclose(numbers.held_out.values[0], pair.losses.values[:, 5:].mean(axis=1))
    assert np.isnan(numbers.aligned.values[1]).all()
    with pytest.raises(rp.InputError, match="0 to 4"):
        LossCurves(focal=5)(pair)


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"documents": {"count": 2, "held_out": 0}}])
def test_smallest_runs(changes: dict[str, object], tmp_path: Path) -> None:
    run = rp.fit(tiny(**changes), tmp_path / "run")
    summary = analyze(run)
    assert (run.path / "report.html").exists()
    assert len(summary["recovery"]["estimates"]["score"]) == 2 * (run.config.epochs - 1)


def test_unfinished_run(forgetful: rp.Run, tmp_path: Path) -> None:
    found = analyze(cut(forgetful, tmp_path / "cut", 7))["recovery"]
    # 7 episodes done: documents 0, 1 and 2 stand right before, or after, their second.
    left_out = found["left_out"]["cyclic"]["per_document"]
    assert [sum(reasons.values()) for reasons in left_out] == [2, 5]
    assert values(found, "score", reading="curve") == [None, None]
    assert "not reached" in next(iter(left_out[1]))


@pytest.fixture(scope="module")
def uneven(pair: rp.Run, tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run whose schedule has document 0 five times, and document 4 once."""
    path = tmp_path_factory.mktemp("uneven") / "run"
    shutil.copytree(pair.path, path)
    training(path)["document_of_episode"][:] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 2, 4, 3, 0]
    return rp.open_run(path)


def test_an_uneven_schedule_has_its_losses_and_says_what_it_lacks(
    uneven: rp.Run, pair: rp.Run, tmp_path: Path
) -> None:
    summary = analyze(uneven, pair.controls, out=tmp_path)
    assert {"recovery", "loss_curves", "token_recovery"} <= set(summary["analyses"])
    assert "equally often" in summary["not_done"]["online_loss"]
    assert not [why for why in summary["not_done"].values() if why.startswith("failed")]
    assert "No picture yet" not in (tmp_path / "report.html").read_text()
    dataset = xr.open_zarr(tmp_path / "analyses" / "recovery.zarr")
    schedule, losses = uneven.schedule.values, uneven.losses.values
    turns = np.flatnonzero(schedule == 2)
    for n, (this, following) in enumerate(itertools.pairwise(turns)):
        wait = losses[this + 1 : following + 1, 2]
        forgotten = wait.max() - wait[0]
        expected = (wait.max() - wait[-1]) / forgotten if forgotten > 0.01 else np.nan
        np.testing.assert_allclose(dataset.document_score[0, n, 2], expected)
    assert (dataset.reason.values[0, :, 4] == stats.NO_TURN).all(), "it does not come back"
    assert (dataset.reason.values[1, 2:] == stats.NO_TURN).all(), "the control has two waits"
