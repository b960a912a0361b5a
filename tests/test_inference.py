"""Means, intervals and p-values: coverage and false positives, closed forms, laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery_probe import stats

# Of one name each: draws of a shape, and their true mean.
SHAPES = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "beta": (lambda rng, shape: rng.beta(2, 5, size=shape), 2 / 7),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(size=shape), np.exp(0.5)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("units", [5, 12, 20])
def test_a_mean_is_covered_as_often_as_said(name: str, units: int) -> None:
    """1200 samples at once. Percentile intervals fail all of these: 76 to 93%."""
    draw, truth = SHAPES[name]
    rng = np.random.default_rng(units)
    sample = draw(rng, (units, 1200))
    mean, low, high = stats.studentised_interval(sample, rng)
    np.testing.assert_allclose(mean, sample.mean(axis=0))
    covered = np.mean((low <= truth) & (truth <= high))
    if name == "lognormal":
        assert 0.87 < covered < 0.95
    else:
        assert (0.915 if units == 5 else 0.93) < covered < 0.98


@pytest.mark.parametrize("units", [4, 9])
def test_values_that_are_missing_leave_coverage_as_it_was(units: int) -> None:
    rng = np.random.default_rng(units)
    sample = np.full((20, 1200), np.nan)
    sample[:units] = rng.exponential(size=(units, 1200))
    _, low, high = stats.studentised_interval(sample, rng)
    assert 0.89 < np.mean((low <= 1) & (high >= 1)) < 0.98


def test_a_studentised_interval_by_hand() -> None:
    """Every resample laid out; those of one unit over and over have no standard error."""
    values = np.random.default_rng(0).exponential(size=6)
    drawn = values[np.random.default_rng(1).integers(6, size=(2000, 6))]
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / np.sqrt(6))
    low, high = np.quantile(t[np.isfinite(t)], [0.05, 0.95])
    error = values.std(ddof=1) / np.sqrt(6)
    expected = values.mean(), values.mean() - high * error, values.mean() - low * error
    found = stats.studentised_interval(values, np.random.default_rng(1), level=0.9)
    np.testing.assert_allclose(found, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_an_interval_moves_and_grows_with_its_values(seed: int, scale: float, by: float) -> None:
    values = np.random.default_rng(seed).normal(size=(7, 3, 2))
    values[0, 0] = np.nan
    one = stats.studentised_interval(values, np.random.default_rng(0), 99)
    other = stats.studentised_interval(scale * values + by, np.random.default_rng(0), 99)
    np.testing.assert_allclose(np.stack(one) * scale + by, other, rtol=1e-6, atol=1e-6)
    assert one[1].shape == (3, 2)


def test_what_has_no_interval() -> None:
    """Three values, or one over and over, also where rounding tells them from their mean."""
    nan = np.nan
    values = np.array([[0.1, 1, 0], [0.1, 2, 0], [0.1, 3, 0], [0.1, nan, 0], [0.1, nan, 0]])
    mean, low, high = stats.studentised_interval(values, np.random.default_rng(0))
    np.testing.assert_allclose(mean, [0.1, 2, 0])
    assert np.isnan([low, high]).all()


def test_bootstrap_of_two_units_has_no_interval() -> None:
    low, high = stats.bootstrap_interval(
        lambda i: np.array([1.0, 2.0])[i].mean(axis=1), 2, np.random.default_rng(0)
    )
    assert np.isnan(low)
    assert np.isnan(high)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_resampled_means_are_those_of_the_values_drawn(units: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(units, width))
    drawn = rng.integers(units, size=(11, units))
    expected = np.array([[values[i] for i in row] for row in drawn]).mean(axis=1)
    np.testing.assert_allclose(stats.resampled_means(values, drawn), expected, atol=1e-12)
    assert np.isnan(stats.resampled_means(values * [np.nan], drawn)).all()


def test_p_values_of_a_mean_over_seeds() -> None:
    """SciPy's, of values with holes; one sided where said; none of one value, or of one value over
    and over."""
    values = np.random.default_rng(0).normal(0.3, size=(6, 4))
    values[2, 1] = np.nan
    for alternative in ("two-sided", "greater", "less"):
        expected = scipy.stats.ttest_1samp(values, 0, nan_policy="omit", alternative=alternative)
        np.testing.assert_allclose(stats.t_p(values, alternative), expected.pvalue)
    assert np.isnan(stats.t_p(np.array([[0.1, 0.1], [0.1, np.nan], [0.1, np.nan]]))).all()
    assert np.isnan(stats.t_interval(np.full((3, 1), 0.1))).all()
    with pytest.raises(ValueError, match="neither greater, less nor two-sided"):
        stats.t_p(values, "larger")


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_a_mean_and_its_opposite_are_as_probable(seeds: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(seeds, 3))
    np.testing.assert_allclose(stats.t_p(values), stats.t_p(-values))
    one, other = stats.t_p(values, "greater"), stats.t_p(-values, "less")
    np.testing.assert_allclose(one, other)
    np.testing.assert_allclose(stats.t_p(values), 2 * np.minimum(one, 1 - one))


def test_power_is_that_of_seeds_drawn() -> None:
    """How many it takes, for effects of .5 to 4 standard deviations, is common knowledge."""
    sizes, seeds = (0.5, 0.75, 1, 1.5, 2, 3, 4), (34, 16, 10, 6, 5, 4, 3)
    for size, n in zip(sizes, seeds, strict=True):
        assert stats.power(size, n) >= 0.8 > stats.power(size, n - 1)
        assert stats.detectable(n) <= size < stats.detectable(n - 1)
    for n in (3, 6, 20):
        drawn = np.random.default_rng(n).normal(stats.detectable(n), size=(n, 4000))
        assert np.mean(stats.t_p(drawn) < 0.05) == pytest.approx(0.8, abs=0.02)
    assert stats.power(0, 5) == pytest.approx(0.05)
    assert np.isnan(stats.detectable(1))


def test_holm_by_hand() -> None:
    p = np.array([[0.01, np.nan], [0.04, 0.03], [0.6, 0.5]])
    expected = [[0.05, np.nan], [0.12, 0.12], [1, 1]]
    np.testing.assert_allclose(stats.holm(p), expected)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_keeps_the_order_and_lies_between(p: list[float]) -> None:
    values = np.array(p)
    corrected = stats.holm(values)
    assert (corrected >= values).all()
    assert (corrected <= np.minimum(values * len(p), 1)).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()
    assert corrected.min() == min(1.0, len(p) * values.min())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_a_permutation_p_has_a_floor_and_a_ceiling(count: int, observed: float, seed: int) -> None:
    null = np.random.default_rng(seed).normal(size=count)
    p = stats.permutation_p(observed, null)
    assert 1 / (1 + count) <= p <= 1
    assert p == (1 + sum(v >= observed for v in null)) / (1 + count)
    assert stats.permutation_p(observed + 1, null) <= p


def mean_squares(values: np.ndarray) -> dict[str, float]:
    """Textbook two-way analysis of variance of one value a cell, a sum at a time."""
    S, D = values.shape
    mean = sum(values[s, d] for s in range(S) for d in range(D)) / (S * D)
    row = [sum(values[s, d] for d in range(D)) / D for s in range(S)]
    column = [sum(values[s, d] for s in range(S)) / S for d in range(D)]
    of_seed = D * sum((r - mean) ** 2 for r in row) / (S - 1)
    of_document = S * sum((c - mean) ** 2 for c in column) / (D - 1)
    left = sum(
        (values[s, d] - row[s] - column[d] + mean) ** 2 for s in range(S) for d in range(D)
    ) / ((S - 1) * (D - 1))
    within = sum((values[s, d] - row[s]) ** 2 for s in range(S) for d in range(D)) / (S * (D - 1))
    return {"seed": of_seed, "document": of_document, "left": left, "within": within}


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_variance_components_by_hand(S: int, D: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(S, D))
    squares = mean_squares(values)
    found = stats.variance_components(values, crossed=True)
    assert found["seed"] == pytest.approx(max(0, squares["seed"] - squares["left"]) / D)
    assert found["document"] == pytest.approx(max(0, squares["document"] - squares["left"]) / S)
    assert found["rest"] == pytest.approx(squares["left"])
    found = stats.variance_components(values, crossed=False)
    assert found["seed"] == pytest.approx(max(0, squares["seed"] - squares["within"]) / D)
    assert found["document"] == pytest.approx(squares["within"])
    assert np.isnan(found["rest"])


@pytest.mark.parametrize("crossed", [True, False])
def test_variance_components_are_those_that_were_planted(crossed: bool) -> None:
    """Variances 2 and 1 (and .5 between the two when crossed), over 1500 draws; nested also of
    seeds with unequally many documents."""
    rng, S, D = np.random.default_rng(0), 6, 9
    found = []
    for _ in range(1500):
        seeds, documents = rng.normal(0, 2**0.5, (S, 1)), rng.normal(size=(1 if crossed else S, D))
        values = seeds + documents + crossed * rng.normal(0, 0.5**0.5, (S, D))
        if not crossed:
            values[0, 4:] = np.nan
        found.append(stats.variance_components(values, crossed))
    mean = {name: np.mean([f[name] for f in found]) for name in found[0]}
    assert mean["seed"] == pytest.approx(2, abs=0.1)
    assert mean["document"] == pytest.approx(1, abs=0.05)
    if crossed:
        assert mean["rest"] == pytest.approx(0.5, abs=0.02)


def test_what_documents_of_one_seed_are_worth() -> None:
    """Twenty that correlate by .1 are worth seven: the variance of a seed's mean says so."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.1**0.5, (4000, 1)) + rng.normal(0, 0.9**0.5, (4000, 20))
    found = stats.variance_components(values, crossed=False)
    assert found["icc"] == pytest.approx(0.1, abs=0.01)
    assert found["effective"] == pytest.approx(1 / values.mean(axis=1).var(), rel=0.1)
    nothing = stats.variance_components(values[:1], crossed=False)
    assert np.isnan(list(nothing.values())).all()


def test_p_values_are_corrected_by_the_largest_of_each_draw() -> None:
    """Never below the p-value itself, as it for one group, and right for the family of many."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(100, 300, 6)) + rng.normal(size=(100, 300, 1))  # (draw, case, group)
    scale = np.geomspace(0.01, 100, 6)
    family, each = [], []
    for case in np.moveaxis(draws * scale + 3 * scale, 1, 0):
        p, null, adjusted = stats.of_draws(case)
        np.testing.assert_allclose(null, case.mean(axis=0))
        assert (adjusted >= p).all()
        family.append(adjusted.min())
        each.append(p.min())
    assert 0.02 <= np.mean(np.array(family) <= 0.05) <= 0.08 < np.mean(np.array(each) <= 0.05)
    p, _, adjusted = stats.of_draws(case[:, :1])
    assert p == adjusted
    case[:, 1:3] = np.array([np.nan, 1.0])  # a group without numbers, and one that does not move
    p, _, beside = stats.of_draws(case[:, :3])
    assert beside[0] == adjusted[0]
    assert np.isnan([p[1], beside[1]]).all()
    assert p[2] == beside[2] == 1
