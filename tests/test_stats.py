"""Kernels against hand-worked cases, brute-force loops and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recovery_probe import stats
from recovery_probe.stats import COUNTED, NEVER_ROSE, NO_TURN, NOT_REACHED, TOO_LITTLE


def cyclic(T: int, E: int) -> np.ndarray:
    return np.tile(np.arange(T), E)


def brute_force_score(losses: np.ndarray, schedule: list[int], document: int, n: int) -> float:
    """RS(n) by walking through the episodes one at a time."""
    seen, between = 0, []
    for episode, trained in enumerate(schedule):
        if trained == document:
            if seen == n:
                after, top, before = between[0], max(between), between[-1]
                return (top - before) / (top - after) if top > after else np.nan
            seen += 1
            between = []
        if seen:
            between.append(losses[episode + 1][document])
    return np.nan


def test_hand_worked_score() -> None:
    # One document of T = 4, followed from its first episode to right before its second:
    # loss 1 right after, up to 5, down to 2 before it returns: (5 - 2) / (5 - 1) = 0.75.
    losses = np.zeros((9, 4))
    losses[:, 0] = [9, 1, 3, 5, 2, 1, 1, 1, 1]
    scores, reasons = stats.recovery_per_document(losses, cyclic(4, 2))
    assert scores[0, 0] == 0.75
    assert reasons[0].tolist() == [COUNTED, NEVER_ROSE, NEVER_ROSE, NEVER_ROSE]


def test_hand_worked_two_documents() -> None:
    # T = 2: between two episodes on a document lie two rows, right after and right before.
    # Whatever was forgotten is still forgotten: the score is 0, or nothing was.
    losses = np.array([[9.0, 9], [1, 8], [4, 1], [1, 3], [0.5, 1]])
    scores, reasons = stats.recovery_per_document(losses, cyclic(2, 2))
    assert scores.tolist() == [[0.0, 0.0]]
    assert stats.shift_aligned(losses, cyclic(2, 2)).tolist() == [[9, 8], [1, 1], [4, 3], [1, 1]]
    assert reasons.tolist() == [[COUNTED, COUNTED]]


def test_one_epoch_has_no_score() -> None:
    scores, _ = stats.recovery_per_document(np.ones((4, 3)), cyclic(3, 1))
    assert scores.shape == (0, 3)
    curve, _ = stats.recovery_of_curve(
        stats.shift_aligned(np.ones((4, 3)), cyclic(3, 1)).mean(1), 3
    )
    assert curve.shape == (0,)


def test_no_forgetting_and_monotone_fall_are_left_out_with_their_reason() -> None:
    T = 3
    falling = np.repeat(np.linspace(5, 0, 2 * T + 1)[:, None], T, axis=1)
    flat = np.full((2 * T + 1, T), 2.0)
    barely = flat.copy()
    barely[3, 0] += stats.MIN_FORGETTING / 2
    for losses, expected in ((falling, NEVER_ROSE), (flat, NEVER_ROSE), (barely, TOO_LITTLE)):
        scores, reasons = stats.recovery_per_document(losses, cyclic(T, 2))
        assert np.isnan(scores).all()
        assert reasons[0, 0] == expected
        curve = stats.shift_aligned(losses, cyclic(T, 2)).mean(axis=1)
        _, why = stats.recovery_of_curve(curve, T, min_forgetting=stats.MIN_FORGETTING)
        assert why[0] in (NEVER_ROSE, TOO_LITTLE)


def test_rows_not_reached_are_left_out() -> None:
    rng = np.random.default_rng(0)
    T, E = 4, 3
    losses = rng.uniform(1, 2, (E * T + 1, T))
    losses[T + 2 :] = np.nan  # killed in the second epoch, before document 2 came back
    scores, reasons = stats.recovery_per_document(losses, cyclic(T, E))
    assert (reasons[0] != NOT_REACHED).tolist() == [True, True, False, False]
    assert (reasons[1] == NOT_REACHED).all()
    assert np.isnan(scores[1]).all()


def test_curve_reading_is_of_the_averaged_curve() -> None:
    # Two documents whose peaks come at different times: each recovers wholly, their mean
    # does not rise as high.
    T, curve = 4, np.zeros((10, 4))
    losses = np.full((9, 4), 1.0)
    for d, peak in enumerate([1, 2, 1, 2]):
        losses[d + 1 : d + 5, d] = [0, 0, 0, 0]
        losses[d + 1 + peak, d] = 1
    aligned = stats.shift_aligned(losses, cyclic(T, 2))
    curve = aligned[1 : T + 1].mean(axis=1)
    assert curve.tolist() == [0, 0.5, 0.5, 0]
    score, _ = stats.recovery_of_curve(aligned.mean(axis=1), T)
    assert score[0] == 1.0


@settings(deadline=None)
@given(st.data())
def test_scores_equal_the_brute_force(data: st.DataObject) -> None:
    T, E = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    schedule = np.concatenate([rng.permutation(T) for _ in range(E)])
    values = st.floats(0.125, 9, width=32)
    losses = data.draw(arrays(np.float64, (E * T + 1, T), elements=values))
    scores, _ = stats.recovery_per_document(losses, schedule, min_forgetting=0.0)
    expected = [
        [brute_force_score(losses, schedule.tolist(), d, n) for d in range(T)] for n in range(1, E)
    ]
    np.testing.assert_allclose(scores, np.array(expected).reshape(E - 1, T))


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_curve_equals_the_brute_force(T: int, E: int, seed: int) -> None:
    losses = np.random.default_rng(seed).uniform(0, 5, (E * T + 1, T))
    aligned = stats.shift_aligned(losses, cyclic(T, E))
    assert aligned.shape == ((E - 1) * T + 2, T)
    averaged = [np.mean([losses[x + d, d] for d in range(T)]) for x in range((E - 1) * T + 2)]
    np.testing.assert_allclose(aligned.mean(axis=1), averaged)
    scores, reasons = stats.recovery_of_curve(aligned.mean(axis=1), T, 0.0)
    # The averaged curve scores as one document that comes first would.
    column = np.full((E * T + 1, T), 1.0)
    column[: len(averaged), 0] = averaged
    expected, why = stats.recovery_per_document(column, cyclic(T, E), 0.0)
    np.testing.assert_allclose(scores, expected[:, 0])
    assert reasons.tolist() == why[:, 0].tolist()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-3, 3))
def test_score_ignores_the_losss_scale_and_origin(seed: int, scale: float, shift: float) -> None:
    losses = np.random.default_rng(seed).uniform(0, 5, (13, 4))
    one, _ = stats.recovery_per_document(losses, cyclic(4, 3), 0.0)
    other, _ = stats.recovery_per_document(scale * losses + shift, cyclic(4, 3), 0.0)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_online_loss_equals_the_brute_force() -> None:
    rng = np.random.default_rng(1)
    T, E, M = 5, 3, 4
    schedule = np.concatenate([rng.permutation(T) for _ in range(E)])
    train_loss = rng.uniform(size=E * T * M)
    expected = np.zeros((E, T))
    times = [0] * T
    for episode, document in enumerate(schedule):
        expected[times[document], document] = train_loss[episode * M]
        times[document] += 1
    assert np.array_equal(stats.online_loss(train_loss, M, schedule), expected)


def test_an_uneven_schedule() -> None:
    """Documents come three times, twice and once: what waits is scored, what does not is named."""
    schedule = np.array([0, 1, 0, 2, 1, 0])
    losses = np.random.default_rng(2).uniform(0, 5, (7, 3))
    scores, reasons = stats.recovery_per_document(losses, schedule, 0.0)
    assert scores.shape == (2, 3)
    for n, document in ((1, 0), (2, 0), (1, 1)):
        expected = brute_force_score(losses, schedule.tolist(), document, n)
        np.testing.assert_allclose(scores[n - 1, document], expected)
    assert (reasons == NO_TURN).tolist() == [[False, False, True], [False, True, True]]
    assert stats.recovery_per_document(losses[:4], schedule)[1][1, 0] == NOT_REACHED
    assert [len(episodes) for episodes in stats.turns(schedule, 3)] == [3, 2, 1]
    with pytest.raises(ValueError, match=r"\[3, 2, 1\] times, not equally often"):
        stats.visits(schedule, 3)


def test_periodic_is_one_order_for_all_epochs() -> None:
    order = np.array([2, 0, 1])
    assert stats.is_periodic(np.tile(order, 4), 3)
    assert stats.is_periodic(order, 3)
    for schedule, even in (
        ([2, 0, 1, 2, 1, 0], True),
        ([0, 0, 1, 2, 2, 1], True),
        ([0, 1, 0, 1], False),
        ([0, 1, 2, 0], False),
        ([0, 1, 2, 3], False),
    ):
        assert not stats.is_periodic(np.array(schedule), 3)
        assert stats.is_even(np.array(schedule), 3) == even


def test_alignment_follows_the_order_of_the_period() -> None:
    losses = np.random.default_rng(3).uniform(size=(7, 3))
    order = np.array([2, 0, 1])  # first episodes: document 2 at 0, 0 at 1, 1 at 2
    aligned = stats.shift_aligned(losses, np.tile(order, 2))
    expected = [[losses[x + 1, 0], losses[x + 2, 1], losses[x, 2]] for x in range(5)]
    assert aligned.tolist() == expected
