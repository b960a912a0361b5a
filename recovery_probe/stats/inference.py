"""Means, intervals and p-values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def mean_of_counted(values: Floats, axis: int = -1) -> Floats:
    """Mean without NaN; NaN, and no warning, where nothing counts."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis=axis)
    number = counted.sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def bootstrap_interval(
    statistic: Callable[[Ints], Floats],
    units: int,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """Percentile bootstrap over `units` (documents, runs).

    `statistic` takes indices of units, (resamples, units), and returns (resamples, …). Returns
    the lower and upper bound of the `level` interval, each (…); NaN where fewer than half of the
    resamples have a value, or with fewer than 3 units, of which no interval can be made.
    """
    drawn = statistic(rng.integers(units, size=(resamples, units)))
    bounds = np.full((2, *drawn.shape[1:]), np.nan)
    usable = np.isfinite(drawn).mean(axis=0) >= 0.5
    if units >= 3 and usable.any():
        tails = [(1 - level) / 2, (1 + level) / 2]
        bounds[:, usable] = np.nanquantile(drawn[:, usable], tails, axis=0)
    return bounds[0], bounds[1]


def mean_interval(
    values: Floats, rng: np.random.Generator, resamples: int = 2000
) -> tuple[Floats, Floats, Floats]:
    """Mean over the first axis (units) without NaN, and the bounds of its interval, as
    `bootstrap_interval` has them; NaN where fewer than three units have a value."""
    bounds = bootstrap_interval(
        lambda drawn: resampled_means_of_counted(values, drawn), len(values), rng, resamples
    )
    few = np.isfinite(values).sum(axis=0) < 3
    low, high = (np.where(few, np.nan, bound) for bound in bounds)
    return mean_of_counted(values, axis=0), low, high


def resampled_means(values: Floats, drawn: Ints) -> Floats:
    """(resamples, …): means of (units, …) values over each of the (resamples, k) `drawn` units;
    NaN where any unit is. A product with how often each was drawn: the values drawn are never
    laid out, which for curves would be gigabytes."""
    weights = np.zeros((len(drawn), len(values)))
    np.add.at(weights, (np.arange(len(drawn))[:, None], drawn), 1 / drawn.shape[1])
    return np.tensordot(weights, values, axes=1)


def resampled_means_of_counted(values: Floats, drawn: Ints) -> Floats:
    """The same without NaN; NaN, and no warning, where nothing counts."""
    counted = np.isfinite(values)
    total = resampled_means(np.where(counted, values, 0.0), drawn)
    share = resampled_means(counted.astype(float), drawn)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / np.where(share > 0, share, np.nan)


def sd_of_counted(values: Floats) -> Floats:
    """Standard deviation over the first axis without NaN; NaN for fewer than two."""
    counted = np.isfinite(values).sum(axis=0)
    square = mean_of_counted((values - mean_of_counted(values, axis=0)) ** 2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted > 1, np.sqrt(square * counted / (counted - 1)), np.nan)


def effect(difference: Floats, rng: np.random.Generator) -> Floats:
    """Of differences (unit, other): their mean, and the mean in standard deviations of units, each
    with the interval that resamples units and others at once: (value, low and high; mean, size).
    No interval where fewer than three units count, nor of two others; one is taken as it is."""
    units, others = difference.shape

    def statistic(i: Ints, j: Ints) -> Floats:
        each = mean_of_counted(difference[i[:, :, None], j[:, None, :]])
        mean, sd = mean_of_counted(each), sd_of_counted(each.T)
        return np.stack([mean, mean / np.where(sd > 0, sd, np.nan)], axis=-1)

    (value,) = statistic(np.arange(units)[None], np.arange(others)[None])
    low, high = bootstrap_interval(
        lambda i: statistic(i, rng.integers(others, size=(len(i), others))), units, rng
    )
    if np.isfinite(difference).any(axis=1).sum() < 3 or others == 2:
        low = high = np.full(2, np.nan)
    return np.stack([value, low, high])


def t_interval(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bounds of the mean over the first axis, of independent units (runs), leaving NaN out:
    mean ± t · sd / √n. NaN for fewer than two."""
    import scipy.stats  # here, so that opening a run does not wait for it

    counted = np.isfinite(values).sum(axis=0)
    mean, sd = mean_of_counted(values, axis=0), sd_of_counted(values)
    t = scipy.stats.t.ppf((1 + level) / 2, np.maximum(counted - 1, 1))
    half = t * sd / np.sqrt(np.maximum(counted, 1))
    return mean - half, mean + half


def fisher(p: Floats) -> Floats:
    """P-values of independent runs (the first axis), combined; NaN where any is missing."""
    import scipy.stats

    return scipy.stats.combine_pvalues(p, method="fisher", axis=0).pvalue


def permutation_p(observed: Floats | float, null: Floats, slack: float = 1e-9) -> Floats:
    """Share of (permutations, …) null values at least as large as the observed (…) ones, which
    count as one of them (Phipson and Smyth 2010); NaN where the observed value is."""
    # A permutation that changes nothing ties, rounded or not.
    as_large = (null >= observed - slack * np.abs(observed)).sum(axis=0)
    p = (1 + as_large) / (1 + len(null))
    return np.where(np.isfinite(observed), p, np.nan)


def slope_with_p(values: Floats, orders: int = 5040) -> tuple[float, float]:
    """Slope of values (n,) against their index, and its two-sided p-value over all orders of them
    (over `orders` random ones when there are more)."""
    import scipy.stats

    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        return np.nan, np.nan
    index = np.arange(n) - (n - 1) / 2

    def slope(values: Floats, axis: int) -> Floats:
        # Added up in one order, however many come at once: an order ties with itself to the bit.
        return (values * index).sum(axis=axis) / (index @ index)

    test = scipy.stats.permutation_test(
        (values,),
        slope,
        permutation_type="pairings",
        n_resamples=orders,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.statistic), float(test.pvalue)


def sign_flip_p(values: Floats, flips: int = 4096) -> float:
    """Two-sided p-value of the sum of independent values (n,) that are as likely to be negative:
    over all their signs (over `flips` random ones when there are more)."""
    import scipy.stats

    test = scipy.stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        n_resamples=flips,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
