"""Losses by age: by brute force, planted recovery, and processes in which there is nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import cut
from hypothesis import given
from hypothesis import strategies as st
from recovery_probe_analyses.age_curve import AgeCurve
from recovery_probe_analyses.recovery import Recovery

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import ages, estimate
from recovery_probe.schedules.cyclic import Cyclic
from recovery_probe.schedules.shuffled import Shuffled
from recovery_probe.simulations.age_only import AgeOnly
from recovery_probe.simulations.by_age import ByAge
from recovery_probe.simulations.common_shock import CommonShock
from recovery_probe.simulations.decelerating_drift import DeceleratingDrift
from recovery_probe.simulations.drift import Drift

Fake = Callable[..., list[rp.Run]]
T, E, DRAWS = 20, 6, 300
MIDDLE = 13
AGES = np.arange(1, T + 1)


@functools.cache
def orders(draw: int) -> tuple[np.ndarray, np.ndarray]:
    """A cycle and the toolkit's own control, every other time with a first document that stays."""
    shuffled = Shuffled(keep_first=bool(draw % 2))
    return tuple(s.order(T, E, np.random.default_rng(draw)) for s in (Cyclic(), shuffled))


def drawn(process: ByAge, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Its losses under both orders."""
    rng = np.random.default_rng([draw, 0])
    both = zip(orders(draw), ("cyclic", "shuffled"), strict=True)
    return tuple(process.losses(order, kind, rng)[:, :T] for order, kind in both)


def compared(
    process: ByAge, draw: int, last: slice = slice(-1, None), equal_time: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Of the last epoch, as `ages.numbers` compares it: (document, part); and the cycle's curves,
    (document, age)."""
    here, there = map(stats.by_age, drawn(process, draw), orders(draw), (T, T))
    ours = stats.at_times(*here, there[1][last]) if equal_time else here[0][last]
    return np.stack(stats.matched(ours, there[0][last], MIDDLE), axis=-1)[-1], here[0][-1]


def false_positives(process: ByAge) -> np.ndarray:
    """(part,): the share of draws whose interval leaves 0 out."""
    each = np.stack([compared(process, draw)[0] for draw in range(DRAWS)], axis=1)
    found = estimate.of_mean(each, np.random.default_rng(0))  # (draw, part)
    return ((found.low > 0) | (found.high < 0)).mean(axis=0)


@pytest.mark.parametrize(
    "process",
    [
        AgeOnly(noise=0.05),
        AgeOnly(noise=0.1, memory=0.8),
        AgeOnly(noise=0.1 / np.sqrt(T), memory=1.0),
        Drift(fall=0.2),
        Drift(fall=0.6),
        DeceleratingDrift(fall=1.5, slowing=1.5),
    ],
    ids=repr,
)
def test_forgetting_by_age_and_drift_are_no_difference(process: ByAge) -> None:
    share = false_positives(process)
    assert (share >= 0.015).all(), share
    assert (share <= 0.08).all(), share


def test_a_shock_to_all_documents_is_in_no_interval_over_documents() -> None:
    """Which is why one run has no verdict."""
    assert (false_positives(CommonShock(shock=0.1))[1:] > 0.1).all()


def test_without_equal_time_drift_is_called_a_gain() -> None:
    """Waits of T or more begin T/6 episodes earlier in a shuffled epoch than in a cycle."""
    plain, equal = (
        np.mean(
            [
                np.nanmean(compared(Drift(fall=0.6), draw, equal_time=how)[0], axis=0)
                for draw in range(100)
            ],
            axis=0,
        )
        for how in (False, True)
    )
    np.testing.assert_allclose(plain, [0, 0.1, -0.1], atol=0.03)
    np.testing.assert_allclose(equal, 0, atol=0.01)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
def test_planted_recovery_is_found(noise: float) -> None:
    """Half of what is forgotten comes back, in the cycle alone: .50, all of it gain."""
    process = AgeOnly(planted=0.5, noise=noise)
    parts, curves = zip(*(compared(process, draw) for draw in range(DRAWS)), strict=True)
    nats = np.mean([np.nanmean(part, axis=0) for part in parts], axis=0)
    np.testing.assert_allclose(nats / process.forgotten(np.array(T - 1)), [0.5, 0.5, 0], atol=0.02)
    crossed = [stats.cross_fitted(each, np.arange(T)[None]) for each in curves]
    assert np.mean(crossed) == pytest.approx(0.487, abs=0.02)


@pytest.mark.parametrize("process", [AgeOnly(noise=0.2), AgeOnly(noise=0.2, memory=0.8)], ids=repr)
def test_cross_fitted_score_has_no_floor(process: ByAge) -> None:
    """Pure forgetting: 0 or a little less, where each document's own score is .15 or more."""
    crossed, own = [], []
    for draw in range(DRAWS):
        losses, order = drawn(process, draw)[0], orders(draw)[0]
        curves = stats.by_age(losses, order, T)[0][-1]
        crossed.append(stats.cross_fitted(curves, np.arange(T)[None]))
        own.append(np.nanmean(stats.recovery_per_document(losses, order)[0][-1]))
    assert -0.06 < np.mean(crossed) < 0.02
    assert np.mean(own) > 0.15


def test_cross_fitted_by_hand() -> None:
    """Also of a resample: a document that is drawn twice is left out twice."""
    rng = np.random.default_rng(0)
    curves = rng.uniform(2, 3, (6, 9))
    curves[:, 0] = 1
    drawn = np.stack([np.arange(6), rng.integers(6, size=6)])
    for found, documents in zip(stats.cross_fitted(curves, drawn), drawn, strict=True):
        fall = rise = 0.0
        for d in documents:
            others = np.sum([curves[e] for e in documents if e != d], axis=0)
            top = curves[d, others.argmax()]
            fall, rise = fall + top - curves[d, -1], rise + top - curves[d, 0]
        assert found == pytest.approx(fall / rise)


schedules = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array)


@given(schedules, st.integers(0, 40))
def test_cases_by_brute_force(schedule: np.ndarray, reached: int) -> None:
    """Any schedule, any number of episodes done: walking through it one episode at a time."""
    rng = np.random.default_rng(len(schedule))
    losses = rng.normal(size=(len(schedule) + 1, 4))
    losses[reached + 1 :] = np.nan
    curves, begins = stats.by_age(losses, schedule, 4)
    for document in range(4):
        visits = [t for t, d in enumerate(schedule.tolist()) if d == document]
        for n, (this, following) in enumerate(itertools.pairwise(visits)):
            expected = [losses[this + s, document] for s in range(1, 5) if this + s <= following]
            if len(expected) < 4 or this + 4 > reached:
                assert np.isnan(curves[n, document]).all()
                assert np.isnan(begins[n, document])
            else:
                assert curves[n, document].tolist() == expected
                assert begins[n, document] == this
        assert np.isnan(curves[max(0, len(visits) - 1) :, document]).all()


@given(st.integers(0, 1000), st.floats(-1, 1))
def test_a_straight_drift_is_taken_out_exactly(draw: int, slope: float) -> None:
    """Also of waits that began before the run's first, or after its last."""
    start, cycle = np.random.default_rng(draw).normal(size=T), np.tile(np.arange(T), E)
    line = start + slope * np.arange(T * E + 1)[:, None]
    curves, begins = stats.by_age(line, cycle, T)
    _, when = stats.by_age(line, orders(draw)[1], T)
    expected = start[:, None] + slope * (when[..., None] + AGES)
    np.testing.assert_allclose(stats.at_times(curves, begins, when), expected, atol=1e-8)


@given(st.integers(0, 1000), st.integers(1, T - 1))
def test_the_matched_fall_is_gain_and_excess(seed: int, middle: int) -> None:
    run, control = np.random.default_rng(seed).normal(size=(2, 3, T)) * 10
    fall, gain, excess = stats.matched(run, control, middle)
    np.testing.assert_allclose(fall, gain + excess, atol=1e-12)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    """Makes a run and its control of 12 documents, whose losses rise by 1 nat up to mid-wait and
    fall by so much until age 12."""
    path = tmp_path_factory.mktemp("fake") / "runs"
    process = AgeOnly(documents=12, held_out=0, epochs=4, steps=1)
    written = rp.simulate(process, path)

    def made(*back: float, seed: int = 0, noise: float = 0.01) -> list[rp.Run]:
        rng, runs = np.random.default_rng(seed), [written, *written.controls]
        copies = [rp.open_run(run.path) for run in runs]
        for copy, share in zip(copies, back, strict=True):
            since = process.ages(copy.schedule.values) + 1
            losses = 2 + np.interp(since, [1, 8, 12], [0, 1, 1 - share])
            copy.losses = copy.losses.copy(data=losses + noise * rng.normal(size=losses.shape))
        return copies

    return made


def test_numbers_of_a_run_by_loops(fake: Fake) -> None:
    """Pairs found, brought to equal time and subtracted, one document at a time."""
    run, control = fake(0.7, 0.1)
    found = AgeCurve()(run, control)
    ours, theirs = run.losses.values, control.losses.values
    turns = [np.flatnonzero(control.schedule.values == d) for d in range(12)]
    for n, d in itertools.product(range(3), range(12)):
        this, following = turns[d][n], turns[d][n + 1]
        got = [float(found[f"document_{name}"][0, n, d]) for name in ages.PARTS]
        if following - this < 12:
            assert np.isnan(got).all()
            continue
        place = (this - d) / 12  # in epochs of the document's own waits in the cycle
        first = min(max(0, int(np.floor(place))), 1)
        at = {
            s: ours[12 * first + d + s, d]
            + (place - first) * (ours[12 * (first + 1) + d + s, d] - ours[12 * first + d + s, d])
            for s in (8, 12)
        }
        gain = theirs[this + 12, d] - at[12]
        excess = at[8] - theirs[this + 8, d]
        np.testing.assert_allclose(got, [gain + excess, gain, excess], atol=1e-9)
    paired = np.isfinite(found.document_gain).sum("document")
    assert found.paired.values.tolist() == paired.values.tolist()
    assert found.counted.values.tolist() == [[12] * 3, paired.values[0].tolist()]
    np.testing.assert_allclose(found.gain, found.document_gain.mean("document"))
    np.testing.assert_allclose(found.matched_fall, found.gain + found.excess)
    np.testing.assert_allclose(found.score.sel(run="cyclic"), 0.7, atol=0.05)
    assert found.gain.attrs["mean_of"] == "document_gain"
    assert (found.gain_null == 0).all()
    AgeCurve().plot(found)


def test_the_curve_score_is_that_of_recovery(pair: rp.Run) -> None:
    mine = AgeCurve()(pair, *pair.controls).score.sel(reading="curve", run="cyclic")
    theirs = Recovery()(pair).score.sel(reading="curve").isel(run=0)
    np.testing.assert_allclose(mine, theirs)


def test_pure_forgetting_claims_nothing_in_words(fake: Fake) -> None:
    run, control = fake(0.0, 0.0)
    said = AgeCurve().summary(AgeCurve()(run, control))["verdict"]
    assert "there is no bump" in said
    assert "caused" not in said
    assert "spread over documents of one run" in said


def test_a_bump_that_may_be_none_is_given_no_cause(fake: Fake) -> None:
    dataset = AgeCurve()(*fake(0.6, 0.0, noise=1.5))
    fall = estimate.get(dataset, "matched_fall", control="shuffled", epoch=3)
    assert fall.low is not None
    assert fall.low < 0 < 0.1 < fall.value, "the case that is meant"
    said = AgeCurve().verdict(dataset)
    assert "no bump that its documents tell from 0" in said
    assert "caused" not in said


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ((0.0, 0.0), ["0.60 nats per token better off", "none of this bump"]),
        (
            (0.3, 0.3),
            ["0.30 nats per token better off", "0.30 nats per token worse", "50% of this"],
        ),
        ((0.7, 0.7), ["0.10 nats per token worse off", "all of this bump"]),
        ((0.0, 0.9), ["0.30 nats per token worse off", "there is no bump"]),
    ],
)
def test_signs_are_said_honestly(fake: Fake, shift: tuple[float, float], words: list[str]) -> None:
    """The cycle's curve moved up by so much in mid-wait and on arrival."""
    run, control = fake(0.6, 0.0, noise=0)
    since = AgeOnly(documents=12, held_out=0).ages(run.schedule.values) + 1
    run.losses = run.losses + np.interp(since, [1, 8, 12], [0, *shift])
    said = ages.headline(AgeCurve()(run, control))
    assert all(part in said for part in words), said
    assert said.startswith("Epoch 3: ")


def test_seeds_have_intervals_and_points(fake: Fake) -> None:
    each = [AgeCurve()(*fake(0.7, 0.0, seed=seed)) for seed in range(4)]
    both = rp.across(each)
    said = AgeCurve().verdict(both)
    assert "Brackets: 95% over 4 seeds." in said
    assert "bump" in said
    assert both.loss.dims[0] == "seed"
    assert estimate.get(both, "gain").each.shape == (4, 1, 3)
    (score, gain, excess) = ages.three_numbers(both)
    assert "at equal age" in score[1]
    assert gain[1].startswith("0.7")
    assert "4 seeds" in excess[2]
    AgeCurve().plot(both)
    none = rp.across([AgeCurve()(*fake(0.3, 0.3, seed=seed)) for seed in range(4)])
    assert "no bump that several seeds tell from 0" in AgeCurve().verdict(none)


def test_what_is_not_there_is_said(pair: rp.Run, tmp_path: Path) -> None:
    alone = AgeCurve()(pair)
    assert "0.0 nats" not in AgeCurve().verdict(alone)
    assert "no control" in ages.three_numbers(alone)[1][1]
    AgeCurve().plot(alone)
    with pytest.raises(rp.InputError, match="no document has come back yet after 5 episodes"):
        AgeCurve()(cut(pair, tmp_path / "cut", 4))
    early = AgeCurve()(cut(pair, tmp_path / "early", 7), *pair.controls)
    assert np.isnan(early.gain).all(), "one wait has no second to tell the time by"
    said = AgeCurve().summary(early)["verdict"]
    assert "not defined" in said
    assert "compared as far as" in said
    AgeCurve().plot(early)


def test_recovery_so_far_is_that_of_the_mean_of_latest_waits() -> None:
    """In loops, of a schedule in which one document has no second wait, and one short ones."""
    rng = np.random.default_rng(1)
    schedule = np.array([0, 1, 2, 3, 2, 0, 1, 3, 2, 1, 0])
    losses = rng.random((len(schedule) + 1, 4))
    curves = []
    for document in range(4):
        turns = [e for e, d in enumerate(schedule) if d == document]
        waits = [(a, b) for a, b in itertools.pairwise(turns) if b - a >= 4]
        if waits:
            begin = waits[-1][0]
            curves.append([losses[begin + age, document] for age in (1, 2, 3, 4)])
    assert len(curves) == 4
    mean = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    expected = (max(mean) - mean[-1]) / (max(mean) - mean[0])
    assert stats.recovery_so_far(losses, schedule) == pytest.approx(expected)
    assert np.isnan(stats.recovery_so_far(losses[:5], schedule[:4])), "nothing has come back"


def test_a_run_that_is_trained_is_told_by_an_epoch_that_most_documents_have(tmp_path: Path) -> None:
    """And not by its newest, of which the documents that came first are known alone."""
    run = rp.simulate("linear_documents", tmp_path / "run")
    for done, epoch, said in ((20, 1, "Of 1 of 20"), (40, 1, ""), (44, 1, ""), (55, 2, "Of 16 of")):
        dataset = ages.numbers(cut(run, tmp_path / str(done), done))
        assert ages.last_epoch(dataset) == epoch
        text = ages.three_numbers(dataset)[0][2]
        assert said in text if said else "of 20 documents" not in text


def test_a_runs_own_recovery_is_of_what_it_was_trained_on(tmp_path: Path) -> None:
    run = rp.simulate("linear_documents", tmp_path)
    assert run.losses.sizes["document"] > run.config.documents.count
    found = AgeCurve()(run).score.sel(run="cyclic", reading="curve").dropna("epoch")
    assert run.recovery == pytest.approx(float(found[-1]), abs=1e-9)


def test_the_first_line_says_what_was_found(fake: Fake) -> None:
    run, control = fake(0.7, 0.1, noise=0)
    said = ages.lead(AgeCurve()(run, control))
    assert "epoch 3, 70% has come back right before it; in shuffled, at equal age, 10%." in said
    assert said.endswith("One run decides nothing.")
    assert "shuffled" not in ages.lead(AgeCurve()(run))
    seeds = rp.across([AgeCurve()(*fake(0.7, 0.1, seed=seed)) for seed in range(3)])
    assert "decides nothing" not in ages.lead(seeds)
    run.losses = run.losses.copy(data=np.ones_like(run.losses.values))
    assert "nothing was forgotten that could" in ages.lead(AgeCurve()(run))
