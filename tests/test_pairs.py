"""Pair data: effects, intervals over items, tests after effects. By other routes, and by draws of
which the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery_probe import stats

T, H, DRAWS = 20, 5, 600
APART, PLACE = stats.distances(T), np.arange(T)
STRAIGHT = np.abs(PLACE[:, None] - PLACE).astype(float)
HILL = 0.3 + 0.7 * np.exp(-((PLACE - 10) ** 2) / 50)  # bright in the centre
FRESH = 1 - 0.8 * np.exp(-(T - 1 - PLACE) / 4)  # weak gradients of the last documents


def symmetric(rng: np.random.Generator, draws: int = DRAWS, n: int = T) -> np.ndarray:
    above = np.triu(rng.normal(size=(draws, n, n)), 1)
    return above + np.swapaxes(above, 1, 2)


def share(hits: np.ndarray) -> float:
    return float(np.mean(hits))


def covers(interval: stats.Interval, truth: float) -> float:
    _, low, high = interval
    return share((low <= truth) & (truth <= high))


def design(n: int) -> np.ndarray:
    """(n², 1 + 2n): mean, row and column of every ordered pair."""
    i, j = np.indices((n, n)).reshape(2, -1)
    eye = np.eye(n)
    return np.column_stack([np.ones(n * n), eye[i], eye[j]])


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 9), st.integers(0, 99))
def test_effects_are_the_least_squares_fit(n: int, seed: int) -> None:
    pairs = np.random.default_rng(seed).normal(size=(n, n)) + 3
    off = ~np.eye(n, dtype=bool).ravel()
    fit = design(n)[off] @ np.linalg.lstsq(design(n)[off], pairs.ravel()[off], rcond=None)[0]
    of = stats.effects(pairs)
    np.testing.assert_allclose(of.rest.ravel()[off], pairs.ravel()[off] - fit, atol=1e-12)
    assert of.mean == pytest.approx(pairs.ravel()[off].mean())
    for effect in (of.row.sum(), of.column.sum(), *of.rest.sum(axis=0), *of.rest.sum(axis=1)):
        assert effect == pytest.approx(0, abs=1e-12)


def test_variances_are_those_of_the_textbook_and_unbiased() -> None:
    """Kenny's round-robin formulas, written with loops over a person's row and column means."""
    rng, n = np.random.default_rng(0), 7
    covariance = np.array([[0.5, 0.3], [0.3, 0.4]])
    effects = rng.multivariate_normal([0, 0], covariance, size=(6000, n))
    both = np.sqrt(0.2) * symmetric(rng, 6000, n)  # what the two directions of a pair share
    rest = np.sqrt(0.5) * rng.normal(size=(6000, n, n)) + both
    pairs = 1 + effects[..., :1] + np.swapaxes(effects[..., 1:], 1, 2) + rest
    found = np.stack(stats.variances(stats.effects(pairs)))
    error = found.std(axis=1) / np.sqrt(6000)
    truth = np.array([0.5, 0.4, 0.3, 0.7, 0.2])
    assert (np.abs(found.mean(axis=1) - truth) < 4 * error).all()
    x = pairs[0].copy()
    np.fill_diagonal(x, 0)
    row, column, mean = x.sum(1) / (n - 1), x.sum(0) / (n - 1), x.sum() / (n * (n - 1))
    a = ((n - 1) ** 2 * row + (n - 1) * column) / (n * (n - 2)) - (n - 1) / (n - 2) * mean
    b = ((n - 1) ** 2 * column + (n - 1) * row) / (n * (n - 2)) - (n - 1) / (n - 2) * mean
    between = within = 0.0
    for i in range(n):
        for j in range(i):
            g, h = x[i, j] - a[i] - b[j] - mean, x[j, i] - a[j] - b[i] - mean
            between += (g + h) ** 2 / 2 / ((n - 1) * (n - 2) / 2 - 1)
            within += (g - h) ** 2 / 2 / ((n - 1) * (n - 2) / 2)
    noise, pair = (between + within) / 2, (between - within) / 2
    expected = [
        a @ a / (n - 1) - noise * (n - 1) / (n * (n - 2)) - pair / (n * (n - 2)),
        b @ b / (n - 1) - noise * (n - 1) / (n * (n - 2)) - pair / (n * (n - 2)),
        a @ b / (n - 1) - pair * (n - 1) / (n * (n - 2)) - noise / (n * (n - 2)),
        noise,
        pair,
    ]
    np.testing.assert_allclose(found[:, 0], expected)


Draw = tuple[np.ndarray, np.ndarray, float]  # square, crossed, and the mean of both


def products(rng: np.random.Generator, noise: float, spread: float = 0.3) -> Draw:
    a, b = 1 + spread * rng.normal(size=(DRAWS, T)), 1 + spread * rng.normal(size=(DRAWS, H))
    square = a[:, :, None] * a[:, None] + noise * symmetric(rng)
    return square, a[:, :, None] * b[:, None] + noise * rng.normal(size=(DRAWS, T, H)), 1.0


def sums(rng: np.random.Generator, rows: float, columns: float, common: float) -> Draw:
    """Directed; what documents give, what they gain, and how alike the two are in one of them."""
    gain = rng.normal(size=(DRAWS, T))
    give = common * gain + np.sqrt(1 - common**2) * rng.normal(size=(DRAWS, T))
    noise = 0.2 * rng.normal(size=(DRAWS, T, T + H))
    gained = columns * np.concatenate([gain, rng.normal(size=(DRAWS, H))], axis=1)
    both = rows * give[:, :, None] + gained[:, None] + noise
    return both[..., :T], both[..., T:], 0.0


MODELS: dict[str, Callable[[np.random.Generator], Draw]] = {
    "document effects a_i a_j": lambda rng: products(rng, 0.02),
    "and noise": lambda rng: products(rng, 0.3),
    "weak effects": lambda rng: products(rng, 0.3, 0.05),
    "pair noise": lambda rng: products(rng, 0.2, 0),
    "looked-at documents differ": lambda rng: sums(rng, 0, 0.3, 0),
    "rows and columns alike": lambda rng: sums(rng, 0.3, 0.3, 0.8),
    "directed noise": lambda rng: sums(rng, 0, 0, 0),
}


@pytest.mark.parametrize("model", MODELS)
def test_intervals_over_documents_cover_what_they_say(model: str) -> None:
    square, crossed, mean = MODELS[model](np.random.default_rng(1))
    rest = stats.without_effects(square)
    lags = np.stack([(PLACE - PLACE[:, None]) % T == lag for lag in (1, 7, 10)])
    found = {
        "mean": covers(stats.mean_of_pairs(square), mean),
        "held out": covers(stats.mean_of_crossed(crossed), mean),
        "more": covers(stats.pairs_minus_crossed(square, crossed), 0),
        "near": covers(stats.near_minus_far(rest, APART), 0),
        "lags": covers(stats.means_of_classes(square, lags), mean),
    }
    assert all(0.92 <= coverage <= 0.98 for coverage in found.values()), found


def test_intervals_cover_a_planted_neighbourhood() -> None:
    rng = np.random.default_rng(2)
    square = products(rng, 0.2)[0] + 0.1 * np.cos(2 * np.pi * APART / T)
    planted = 0.1 * (np.cos(2 * np.pi / T) + 1)
    found = stats.near_minus_far(stats.without_effects(square), APART)
    assert found[0].mean() == pytest.approx(planted, abs=0.01)
    assert 0.92 <= covers(found, planted) <= 0.98


def test_means_are_those_of_their_pairs() -> None:
    rng = np.random.default_rng(3)
    pairs = rng.normal(size=(6, 6))
    off = ~np.eye(6, dtype=bool)
    assert stats.mean_of_pairs(pairs)[0] == pytest.approx(pairs[off].mean())
    crossed = rng.normal(size=(6, 3))
    assert stats.mean_of_crossed(crossed)[0] == pytest.approx(crossed.mean())
    more = stats.pairs_minus_crossed(pairs, crossed)[0]
    assert more == pytest.approx(pairs[off].mean() - crossed.mean())
    place = np.arange(6)
    ahead = (place - place[:, None]) % 6 == 2
    expected = np.mean([pairs[i, (i + 2) % 6] for i in range(6)])
    assert stats.means_of_classes(pairs, ahead[None])[0] == pytest.approx([expected])
    apart = stats.distances(6)
    expected = pairs[apart == 1].mean() - pairs[apart == 3].mean()
    assert stats.near_minus_far(stats.effects(pairs).rest, apart)[0] == pytest.approx(expected)
    few = [stats.mean_of_pairs(pairs[:3, :3]), stats.mean_of_crossed(crossed[:, :2])]
    for value, low, high in few:  # a mean, and no interval
        assert np.isfinite(value)
        assert np.isnan([low, high]).all()
    assert np.isnan(stats.mean_of_crossed(crossed[:, :0])).all()
    assert np.isnan(stats.near_minus_far(pairs[:3, :3], stats.distances(3))).all()


def of_distance(
    pairs: np.ndarray, rng: np.random.Generator, draws: int = 199
) -> tuple[np.ndarray, np.ndarray]:
    orders = np.stack([rng.permutation(pairs.shape[-1]) for _ in range(draws)])
    place = np.arange(pairs.shape[-1])
    straight = np.abs(place[:, None] - place).astype(float)
    r, null = stats.partial_mantel(pairs, stats.distances(len(place)), straight[None], orders)
    return r, stats.permutation_p(np.abs(r), np.abs(null))


def test_partial_mantel_is_a_regression_for_every_order() -> None:
    rng, n = np.random.default_rng(4), 8
    pairs = rng.normal(size=(3, n, n)) + np.outer(1 + np.arange(n), 9 - np.arange(n))
    pairs[1] *= 1e4
    rivals = rng.normal(size=(2, n, n))
    rivals = rivals + np.swapaxes(rivals, 1, 2)
    distance = stats.distances(n)
    orders = np.stack([rng.permutation(n) for _ in range(5)])
    r, null = stats.partial_mantel(pairs, distance, rivals, orders)
    above = np.triu_indices(n, 1)
    ends = np.stack([(above[0] == k) + 1.0 * (above[1] == k) for k in range(n)])
    for m, each in enumerate(pairs):
        a, b = stats.strengths(each)
        others = [((x + x.T) / 2)[above] for x in (np.outer(a, b), *rivals)]
        z = np.stack([*ends, *others], axis=1)

        def left(values: np.ndarray, z: np.ndarray = z) -> np.ndarray:
            return values - z @ np.linalg.lstsq(z, values, rcond=None)[0]

        x, d = left(((each + each.T) / 2)[above]), left(distance[above])
        assert r[m] == pytest.approx(np.corrcoef(x, d)[0, 1])
        square = np.zeros((n, n))
        square[above] = x
        square += square.T
        for o, order in enumerate(orders):
            back = np.argsort(order)
            turned = left(square[np.ix_(back, back)][above])
            assert null[o, m] == pytest.approx(np.corrcoef(turned, d)[0, 1])


def noisy(effect: np.ndarray, noise: float, draws: int = 400) -> np.ndarray:
    rng = np.random.default_rng(5)
    n = len(effect)
    return effect + noise * symmetric(rng, draws, n)


@pytest.mark.parametrize(
    "pairs",
    [
        noisy(np.zeros((T, T)), 1),
        noisy(np.outer(HILL, HILL), 0.01),
        noisy(np.outer(HILL, HILL), 0.05),
        noisy(np.outer(HILL, HILL), 0.2),
        noisy(np.outer(FRESH, FRESH), 0.05),
        noisy(HILL[:, None] + HILL, 0.1),
        noisy(-STRAIGHT / T, 0.2),
        noisy(np.outer(HILL, HILL)[:8, :8], 0.05),
        noisy(np.zeros((6, 6)), 1),
    ],
    ids=["noise", "hill", "hill .05", "hill .2", "fresh", "sums", "straight", "eight", "six"],
)
def test_documents_are_not_neighbours(pairs: np.ndarray) -> None:
    """A bright centre and weak gradients of fresh documents passed for neighbours in every draw."""
    _, p = of_distance(pairs, np.random.default_rng(6))
    assert 0.02 <= share(p <= 0.05) <= 0.08
    if len(pairs[0]) == T and not np.allclose(pairs.mean(0), -STRAIGHT / T, atol=0.1):
        found = stats.near_minus_far(stats.without_effects(pairs), APART)
        assert share((found[1] > 0) | (found[2] < 0)) <= 0.08


def test_neighbours_are_found() -> None:
    ring = 0.1 * np.cos(2 * np.pi * APART / T)
    for pairs in (noisy(0.5 + ring, 0.2), noisy(np.outer(HILL, HILL) + ring, 0.1)):
        r, p = of_distance(pairs, np.random.default_rng(7))
        assert r.mean() < -0.2
        assert share(p <= 0.05) > 0.9


def test_what_a_run_and_its_control_share_is_no_difference() -> None:
    ring = 0.05 * np.cos(2 * np.pi * APART / T)
    both = np.outer(HILL, HILL) + ring + 0.1 * symmetric(np.random.default_rng(11), 2 * DRAWS)
    orders = np.stack([np.random.default_rng(o).permutation(T) for o in range(199)])
    r, null = stats.partial_mantel(both, APART, STRAIGHT[None], orders)
    r, null = r[::2] - r[1::2], null[:, ::2] - null[:, 1::2]
    assert 0.02 <= share(stats.permutation_p(np.abs(r), np.abs(null)) <= 0.05) <= 0.08


def test_what_is_undefined_is_not_a_number() -> None:
    pairs = np.stack([np.full((T, T), np.nan), np.ones((T, T)), noisy(np.zeros((T, T)), 1, 1)[0]])
    r, p = of_distance(pairs, np.random.default_rng(0), 9)
    assert np.isnan(r[:2]).all()
    assert np.isnan(p[:2]).all()
    assert np.isfinite(r[2])
    assert np.isnan(of_distance(pairs[2:, :3, :3], np.random.default_rng(0), 9)[0]).all()


def either_way(pairs: np.ndarray) -> tuple[stats.Interval, np.ndarray, np.ndarray]:
    rng, rest = np.random.default_rng(8), stats.without_effects(pairs)
    n = pairs.shape[-1]
    shuffles = np.stack([rng.permutation(n * (n - 1) // 2) for _ in range(199)])
    found, null = stats.reciprocity(rest), stats.reciprocity_by_chance(rest, shuffles)
    return found, null, stats.permutation_p(np.abs(found[0]), np.abs(null))


@pytest.mark.parametrize("model", ["directed noise", "rows and columns alike", "products"])
def test_effects_are_not_reciprocity(model: str) -> None:
    rng = np.random.default_rng(9)
    if model == "products":
        a = 1 + 0.3 * rng.normal(size=(DRAWS, T))
        pairs = a[:, :, None] * a[:, None] + 0.1 * rng.normal(size=(DRAWS, T, T))
    else:
        pairs = MODELS[model](rng)[0]
    found, null, p = either_way(pairs)
    assert 0.02 <= share(p <= 0.05) <= 0.08
    assert null.mean() == pytest.approx(found[0].mean(), abs=0.02)
    assert 0.92 <= covers(found, found[0].mean()) <= 0.98
    other = stats.without_effects(pairs[::-1])
    difference = stats.reciprocity(stats.without_effects(pairs), other)
    assert 0.92 <= covers(difference, 0) <= 0.98


def test_reciprocity_is_found() -> None:
    rng = np.random.default_rng(10)
    pairs = np.sqrt(0.4) * symmetric(rng) + np.sqrt(0.6) * rng.normal(size=(DRAWS, T, T))
    found, _, p = either_way(sums(rng, 0.5, 0.5, -0.9)[0] * 3 + pairs)
    assert share(p <= 0.05) > 0.9
    assert found[0].mean() == pytest.approx(0.4 / (1 + (0.2 * 3) ** 2), abs=0.02)
    assert 0.92 <= covers(found, found[0].mean()) <= 0.98
    identity = np.arange(T * (T - 1) // 2)[None]
    rest = stats.effects(pairs[:3]).rest
    np.testing.assert_allclose(
        stats.reciprocity_by_chance(rest, identity)[0], stats.reciprocity(rest)[0]
    )
    np.testing.assert_allclose(stats.reciprocity(rest + np.swapaxes(rest, 1, 2))[0], 1)


def test_documents_with_gaps_go() -> None:
    maps = np.zeros((3, 7, 7))
    maps[0, 2] = maps[0, :, 2] = np.nan  # no gradient
    maps[1] = np.nan  # nothing was trained there
    maps[2, 5, [0, 1]] = np.nan
    maps[2, 3, 3] = np.nan  # an own pair does not count
    assert stats.complete(maps).tolist() == [0, 1, 3, 4, 6]
    assert stats.complete(maps[1:2]).tolist() == list(range(7))
    maps[2, :, :] = np.nan
    maps[2, 0, 1] = 1
    assert len(stats.complete(maps)) == 1


def test_since_last_trained() -> None:
    schedule = np.array([2, 0, 1, 3, 0, 2])
    last = stats.since_last(schedule, 6, 4)  # 1, 3, 0, 2
    rank = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(last, np.abs(rank[:, None] - rank))
    np.testing.assert_array_equal(stats.since_last(schedule, 0, 4), np.zeros((4, 4)))
    assert stats.since_last(schedule, 1, 4)[2].tolist() == [1, 1, 0, 1]
