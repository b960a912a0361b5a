"""Losses by age: by brute force, planted recovery, and processes in which there is nothing."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import cut
from hypothesis import given
from hypothesis import strategies as st
from recovery_probe_analyses.age_curve import AgeCurve

import recovery_probe as rp
from recovery_probe import stats
from recovery_probe.analyze import ages, estimate
from recovery_probe.schedules.cyclic import Cyclic
from recovery_probe.schedules.shuffled import Shuffled
from recovery_probe.seeds import generator

T, E, DRAWS = 20, 6, 300
MIDDLE = 13
PLAIN = np.arange(1, T + 1)


def episodes_since(schedule: np.ndarray, documents: int) -> np.ndarray:
    """(row, document): episodes since the last one on it; many before the first."""
    since = np.full((len(schedule) + 1, documents), 10**4)
    for row, document in enumerate(schedule, start=1):
        since[row] = since[row - 1] + 1
        since[row, document] = 1
    return since


@functools.cache
def orders(draw: int) -> tuple[np.ndarray, np.ndarray]:
    """A cycle, and the toolkit's own control, without and with a first document that stays."""
    rng = np.random.default_rng([draw, 1])
    kept = Shuffled(keep_first=bool(draw % 2))
    return Cyclic().order(T, E, rng), np.asarray(kept.order(T, E, rng))


def forgetting(since: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-np.minimum(since, 10**3) / 4)


def process(kind: str, size: float, since: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(row, document): documents that are forgotten by age, and no more, with one of several
    disturbances."""
    shape = since.shape
    noise, epoch = rng.normal(size=shape), np.arange(len(since))[:, None] / T
    clear = forgetting(since) + 0.05 * noise
    if kind == "noise":
        return forgetting(since) + size * noise
    if kind == "AR":
        rough = noise.copy()
        for row in range(1, len(since)):
            rough[row] = 0.8 * rough[row - 1] + 0.6 * noise[row]
        return forgetting(since) + size * rough
    if kind == "random walk":
        walk = np.zeros(shape)
        for row in range(1, len(since)):
            walk[row] = np.where(since[row] == 1, 0, walk[row - 1] + noise[row])
        return forgetting(since) + size * walk / np.sqrt(T)
    if kind == "drift":
        return clear - size * epoch
    if kind == "decelerating":
        return clear + size * 3 * np.exp(-epoch / 1.5)
    raise AssertionError(kind)


@functools.cache
def since_of(draw: int) -> tuple[np.ndarray, np.ndarray]:
    cycle, shuffled = (episodes_since(order, T) for order in orders(draw))
    return cycle, shuffled


def compared(
    cycle: np.ndarray, shuffled: np.ndarray, draw: int, equal_time: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Of the last epoch, as `ages.numbers` compares it: (document, part), and the cycle's curves."""
    here, there = (
        stats.by_age(losses, order, T)
        for losses, order in zip((cycle, shuffled), orders(draw), strict=True)
    )
    ours = stats.at_times(*here, there[1][-1:])[0] if equal_time else here[0][-1]
    return np.stack(stats.matched(ours, there[0][-1], MIDDLE), axis=-1), ours


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("noise", 0.05),
        ("noise", 0.2),
        ("AR", 0.1),
        ("random walk", 0.1),
        ("drift", 0.2),
        ("drift", 0.6),
        ("decelerating", 0.5),
    ],
)
def test_forgetting_by_age_and_drift_are_no_difference(kind: str, size: float) -> None:
    """The interval of each of the three parts leaves 0 out in 2 to 8% of draws."""
    each = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, 0])
        losses = [process(kind, size, since, rng) for since in since_of(draw)]
        each.append(compared(*losses, draw)[0])
    found = estimate.of_mean(np.stack(each, axis=1), np.random.default_rng(0))  # (draw, part)
    share = ((found.low > 0) | (found.high < 0)).mean(axis=0)
    assert (share >= 0.01).all(), share
    assert (share <= 0.08).all(), share


def test_without_equal_time_drift_is_called_a_gain() -> None:
    """Waits of T or more begin T/6 episodes earlier in a shuffled epoch than in a cycle."""
    plain, equal = [], []
    for draw in range(100):
        rng = np.random.default_rng([draw, 0])
        losses = [process("drift", 0.6, since, rng) for since in since_of(draw)]
        plain.append(np.nanmean(compared(*losses, draw, equal_time=False)[0], axis=0))
        equal.append(np.nanmean(compared(*losses, draw)[0], axis=0))
    fall, gain, excess = np.mean(plain, axis=0)
    assert abs(fall) < 0.02
    assert gain == pytest.approx(0.6 / 6, abs=0.03)
    assert excess == pytest.approx(-0.6 / 6, abs=0.03)
    np.testing.assert_allclose(np.mean(equal, axis=0), 0, atol=0.01)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
def test_planted_recovery_is_found(noise: float) -> None:
    """Forgetting ends in mid-wait; half of it comes back, in the cycle alone: .50, all of it gain."""
    shares, crossed = [], []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, 0])
        cycle, shuffled = (
            np.interp(since, [1, MIDDLE], [0, 1]) + noise * rng.normal(size=since.shape)
            for since in since_of(draw)
        )
        cycle -= np.interp(since_of(draw)[0], [MIDDLE, T], [0, 0.5])
        parts, ours = compared(cycle, shuffled, draw)
        forgotten = ours[:, MIDDLE - 1] - ours[:, 0]
        shares.append(np.nanmean(parts, axis=0) / np.nanmean(forgotten))
        fall, rise = stats.tops_of_others(stats.by_age(cycle, orders(draw)[0], T)[0][-1])
        crossed.append(fall.sum() / rise.sum())
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.5, 0.5, 0], atol=0.02)
    assert np.mean(crossed) == pytest.approx(0.49, abs=0.02)


@pytest.mark.parametrize(("kind", "size"), [("noise", 0.2), ("AR", 0.2)])
def test_cross_fitted_score_has_no_floor(kind: str, size: float) -> None:
    """Pure forgetting: 0, where the mean of each document's own score is .15 or more."""
    crossed, own = [], []
    for draw in range(DRAWS):
        order = orders(draw)[0]
        losses = process(kind, size, since_of(draw)[0], np.random.default_rng([draw, 0]))
        curves = stats.by_age(losses, order, T)[0][-1]
        fall, rise = stats.tops_of_others(curves)
        crossed.append(fall.sum() / rise.sum())
        own.append(np.nanmean(stats.recovery_per_document(losses, order)[0][-1]))
    assert abs(np.mean(crossed)) < 0.05
    assert np.mean(own) > 0.15


def test_cross_fitted_by_hand() -> None:
    curves = np.random.default_rng(0).uniform(1, 3, (6, 9))
    fall, rise = stats.tops_of_others(curves)
    for d in range(6):
        top = curves[d, np.delete(curves, d, axis=0).mean(axis=0).argmax()]
        assert fall[d] == pytest.approx(top - curves[d, -1])
        assert rise[d] == pytest.approx(top - curves[d, 0])


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


@given(st.integers(0, 1000), st.floats(-1, 1), st.floats(-1, 1))
def test_a_straight_drift_is_taken_out_exactly(draw: int, slope: float, by_age: float) -> None:
    """Also of waits that began before the run's first, or after its last, and documents alike in
    nothing else."""
    cycle, shuffled = orders(draw)
    start = np.random.default_rng(draw).normal(size=T)
    both = [
        start
        + by_age * np.minimum(episodes_since(order, T), T)
        + slope * np.arange(T * E + 1)[:, None]
        for order in (cycle, shuffled)
    ]
    (curves, begins), (_, when) = (
        stats.by_age(losses, order, T)
        for losses, order in zip(both, (cycle, shuffled), strict=True)
    )
    expected = start[:, None] + by_age * PLAIN + slope * (when[..., None] + PLAIN)
    np.testing.assert_allclose(stats.at_times(curves, begins, when), expected, atol=1e-8)


@given(st.integers(0, 1000), st.integers(1, T - 1))
def test_the_matched_fall_is_gain_and_excess(seed: int, middle: int) -> None:
    run, control = np.random.default_rng(seed).normal(size=(2, 3, T)) * 10
    fall, gain, excess = stats.matched(run, control, middle)
    np.testing.assert_allclose(fall, gain + excess, atol=1e-12)


def fake(cyclic: float, shuffled: float, seed: int = 0, noise: float = 0.01) -> tuple[Any, Any]:
    """A run and its control of 12 documents, whose losses rise by 1 nat up to mid-wait and fall by
    so much until age 12."""
    rng = np.random.default_rng(seed)
    both = []
    for schedule, back in ((Cyclic(), cyclic), (Shuffled(), shuffled)):
        order = np.asarray(schedule.order(12, 4, np.random.default_rng(7)))
        rise = np.interp(episodes_since(order, 12), [1, 8, 12], [0, 1, 1 - back])
        both.append(made(2 + rise + noise * rng.normal(size=rise.shape), order, schedule.name))
    return both[0], both[1]


def made(losses: np.ndarray, order: np.ndarray, kind: str) -> Any:
    """What an analysis of losses reads of a run."""
    chosen = SimpleNamespace(kind=kind, own={})
    return SimpleNamespace(
        path=Path(kind),
        config=SimpleNamespace(documents=SimpleNamespace(count=losses.shape[1]), schedule=chosen),
        losses=xr.DataArray(losses),
        schedule=xr.DataArray(order),
        episodes_done=len(order),
        rng=functools.partial(generator, 0),
    )


def test_numbers_of_a_run_by_loops() -> None:
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
    from recovery_probe_analyses.recovery import Recovery

    mine = AgeCurve()(pair, *pair.controls).score.sel(reading="curve", run="cyclic")
    theirs = Recovery()(pair).score.sel(reading="curve").isel(run=0)
    np.testing.assert_allclose(mine, theirs)


def test_pure_forgetting_claims_nothing_in_words() -> None:
    run, control = fake(0.0, 0.0)
    said = AgeCurve().summary(AgeCurve()(run, control))["verdict"]
    assert "there is no bump" in said
    assert "caused" not in said
    assert "spread over documents of one run" in said


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
def test_signs_are_said_honestly(shift: tuple[float, float], words: list[str]) -> None:
    """The cycle's curve moved up by so much in mid-wait and on arrival."""
    run, control = fake(0.6, 0.0, noise=0)
    since = episodes_since(run.schedule.values, 12)
    run.losses = run.losses + np.interp(since, [1, 8, 12], [0, *shift])
    said = ages.headline(AgeCurve()(run, control))
    assert all(part in said for part in words), said
    assert said.startswith("Epoch 3: ")


def test_seeds_have_intervals_and_points() -> None:
    each = [AgeCurve()(*fake(0.7, 0.0, seed)) for seed in range(4)]
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
    none = rp.across([AgeCurve()(*fake(0.3, 0.3, seed)) for seed in range(4)])
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
