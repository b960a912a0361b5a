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


def studentised_interval(
    values: Floats,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[Floats, Floats, Floats]:
    """Mean of (units, …) values over the first axis, leaving NaN out, and the bounds of its
    `level` interval, each (…): a studentised bootstrap (bootstrap-t). NaN bounds of fewer than
    four values (of three, 95% would cover 81), and of values that are all the same.

    A resample's mean is measured in its own standard errors, and the quantiles of these are laid
    off in the sample's: the interval learns the skew, and is as much wider as few units make it. A
    percentile interval of 20 units is one of 92%, of skewed ones of 86%.
    """
    units, *shape = values.shape
    flat = values.reshape(units, -1)
    mean, error, number = _mean_and_error(flat)
    error = np.where(number >= 4, error, np.nan)
    sd = error * np.sqrt(number)
    weights = _times_drawn(rng.integers(units, size=(resamples, units)), units)
    tails = np.array([(1 + level) / 2, (1 - level) / 2])
    bounds = np.full((2, flat.shape[1]), np.nan)
    for start in range(0, flat.shape[1], 1000):  # 16 MB a piece, however many curves
        these = slice(start, start + 1000)
        z = (flat[:, these] - mean[these]) / sd[these]
        counted = np.isfinite(z)
        z = np.where(counted, z, 0.0)
        n, total, squares = (weights @ part for part in (counted.astype(float), z, z**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (squares - total**2 / n) / (n - 1)
            t = total / np.sqrt(n * np.where(variance > 1e-12, variance, np.nan))
        # One unit drawn all the time has no standard error, and does not count.
        bounds[:, these] = mean[these] - error[these] * _quantiles_of_counted(t, tails)
    return mean.reshape(shape), bounds[0].reshape(shape), bounds[1].reshape(shape)


def _quantiles_of_counted(values: Floats, shares: Floats) -> Floats:
    """(shares, k) of (n, k), leaving NaN out, as `np.nanquantile` has them, which takes a column at
    a time."""
    ordered = np.sort(values, axis=0)  # NaN last
    number = np.isfinite(values).sum(axis=0)
    place = shares[:, None] * np.maximum(number - 1, 0)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(number - 1, 0))
    low, high = (np.take_along_axis(ordered, index, axis=0) for index in (below, above))
    return low + (high - low) * (place - below)


def _times_drawn(drawn: Ints, units: int) -> Floats:
    """(resamples, units): how often each was drawn."""
    times = np.zeros((len(drawn), units))
    np.add.at(times, (np.arange(len(drawn))[:, None], drawn), 1.0)
    return times


def resampled_means(values: Floats, drawn: Ints) -> Floats:
    """(resamples, …): means of (units, …) values over each of the (resamples, k) `drawn` units;
    NaN where any unit is. A product with how often each was drawn: the values drawn are never
    laid out, which for curves would be gigabytes."""
    return np.tensordot(_times_drawn(drawn, len(values)) / drawn.shape[1], values, axes=1)


def counted_means(values: Floats, drawn: Ints) -> Floats:
    """(resamples, …): as `resampled_means`, leaving NaN out; NaN where nothing drawn counts."""
    times, counted = _times_drawn(drawn, len(values)), np.isfinite(values)
    total = np.tensordot(times, np.where(counted, values, 0.0), axes=1)
    number = np.tensordot(times, counted.astype(float), axes=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def sd_of_counted(values: Floats) -> Floats:
    """Standard deviation over the first axis without NaN; NaN for fewer than two."""
    counted = np.isfinite(values).sum(axis=0)
    square = mean_of_counted((values - mean_of_counted(values, axis=0)) ** 2, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted > 1, np.sqrt(square * counted / (counted - 1)), np.nan)


def t_interval(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bounds of the mean over the first axis, of independent units (runs), leaving NaN out:
    mean ± t · sd / √n. NaN for fewer than two, and for values that are all the same."""
    import scipy.stats  # here, so that opening a run does not wait for it

    mean, error, counted = _mean_and_error(values)
    half = scipy.stats.t.ppf((1 + level) / 2, np.maximum(counted - 1, 1)) * error
    return mean - half, mean + half


def t_p(values: Floats, alternative: str = "two-sided") -> Floats:
    """P-value of a mean of 0 over the first axis, of independent units (runs), leaving NaN out.
    NaN where `t_interval` is."""
    import scipy.stats

    mean, error, counted = _mean_and_error(values)
    df = np.maximum(counted - 1, 1)
    match alternative:
        case "greater":
            return scipy.stats.t.sf(mean / error, df)
        case "less":
            return scipy.stats.t.cdf(mean / error, df)
        case "two-sided":
            return 2 * scipy.stats.t.sf(np.abs(mean / error), df)
    raise ValueError(f"{alternative!r}: neither greater, less nor two-sided")


def _mean_and_error(values: Floats) -> tuple[Floats, Floats, Ints]:
    """Over the first axis without NaN: mean, its standard error, NaN where nothing tells it, and
    how many count."""
    counted = np.isfinite(values).sum(axis=0)
    sd = sd_of_counted(values)
    largest = np.where(np.isfinite(values), np.abs(values), 0.0).max(axis=0)
    sd = np.where(sd > 1e-9 * largest, sd, np.nan)
    return mean_of_counted(values, axis=0), sd / np.sqrt(np.maximum(counted, 1)), counted


def power(size: float, units: int, level: float = 0.05) -> float:
    """How often a two-sided t test of so many units finds a mean of `size` standard deviations."""
    import scipy.stats

    df, away = units - 1, size * np.sqrt(units)
    beyond = scipy.stats.t.isf(level / 2, df)
    tails = scipy.stats.nct.sf(beyond, df, away), scipy.stats.nct.cdf(-beyond, df, away)
    return float(tails[0] + np.nan_to_num(tails[1]))  # the far tail may be too small for SciPy


def detectable(units: int, share: float = 0.8, level: float = 0.05) -> float:
    """The mean, in standard deviations, that a two-sided t test of so many units finds in `share`
    of cases; NaN for fewer than two."""
    import scipy.optimize

    if units < 2:
        return np.nan
    return float(
        scipy.optimize.brentq(lambda size: power(size, units, level) - share, 0, 50, xtol=1e-6)
    )


def holm(p: Floats) -> Floats:
    """P-values (…), corrected for how many there are (Holm 1979); NaN is none, and stays."""
    flat = p.ravel()
    order = np.argsort(flat)[: np.isfinite(flat).sum()]
    corrected = np.full(flat.shape, np.nan)
    steps = np.arange(len(order), 0, -1) * flat[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.reshape(p.shape)


def variance_components(values: Floats, crossed: bool) -> dict[str, float]:
    """Of (seed, document) values: the variances of what seeds, documents and neither bring
    (`seed`, `document`, `rest`), by the mean squares of an analysis of variance, none below 0.

    `crossed`: every seed has the same documents, and those count that all seeds have a value of.
    Otherwise each seed has documents of its own, and what is of the document and what is left
    cannot be told apart: `document` holds both, `rest` is NaN. Also `icc`, the correlation of two
    documents of one seed, and `effective`, of how many independent documents one seed's mean is
    worth. All NaN of fewer than two seeds, or two documents.
    """
    values = values[np.isfinite(values).any(axis=1)]
    if crossed:
        values = values[:, np.isfinite(values).all(axis=0)]
    per_seed = np.isfinite(values).sum(axis=1)
    names = ("seed", "document", "rest", "icc", "effective")
    seeds, number = len(values), per_seed.sum()
    if seeds < 2 or number <= seeds or (crossed and values.shape[1] < 2):
        return dict.fromkeys(names, np.nan)
    means, mean = mean_of_counted(values), np.nansum(values) / number
    between = (per_seed * (means - mean) ** 2).sum() / (seeds - 1)
    # Documents a seed; of unequal ones, the number whose weight equals theirs.
    each = (number - (per_seed**2).sum() / number) / (seeds - 1)
    if crossed:
        columns = values.mean(axis=0)
        left = values - means[:, None] - columns + mean
        rest = (left**2).sum() / ((seeds - 1) * (len(columns) - 1))
        documents = seeds * ((columns - mean) ** 2).sum() / (len(columns) - 1)
        document, within = max(0.0, (documents - rest) / seeds), rest
    else:
        within = np.nansum((values - means[:, None]) ** 2) / (number - seeds)
        document, rest = within, np.nan
    seed = max(0.0, (between - within) / each)
    whole = seed + document + (rest if crossed else 0.0)
    icc = seed / whole if whole > 0 else np.nan
    effective = each / (1 + (each - 1) * icc)
    return dict(zip(names, map(float, (seed, document, rest, icc, effective)), strict=True))


def permutation_p(observed: Floats | float, null: Floats, slack: float = 1e-9) -> Floats:
    """Share of (permutations, …) null values at least as large as the observed (…) ones, which
    count as one of them (Phipson and Smyth 2010); NaN where the observed value is."""
    # A permutation that changes nothing ties, rounded or not.
    as_large = (null >= observed - slack * np.abs(observed)).sum(axis=0)
    p = (1 + as_large) / (1 + len(null))
    return np.where(np.isfinite(observed), p, np.nan)


def of_draws(draws: Floats, slack: float = 1e-9) -> tuple[Floats, Floats, Floats]:
    """Of (draw, group, …) values, of which the first are the observed ones and the others what
    chance made of all groups at once: the one-sided p-values, the means of their nulls, and the
    p-values corrected for how many groups there are, each (group, …).

    Corrected, an observed value, in standard deviations of its null, is held against the largest
    of its draw (Westfall and Young 1993).
    """
    p, null = permutation_p(draws[0], draws[1:], slack), draws.mean(axis=0)
    sd = draws.std(axis=0)
    # A group that chance does not move is never the largest, nor one without numbers.
    moves = np.isfinite(sd) & (sd > 1e-9 * np.abs(null))
    scale = np.where(moves, sd, 1.0)
    standard = np.where(moves, (draws - null) / scale, -np.inf)
    observed = standard[0] - slack * np.abs(draws[0]) / scale
    as_large = (standard[1:].max(axis=1, keepdims=True) >= observed).sum(axis=0)
    adjusted = np.where(np.isfinite(draws[0]), (1 + as_large) / len(draws), np.nan)
    return p, null, np.maximum(p, adjusted)


def slope(values: Floats) -> float:
    """Of values (n,) against their index."""
    index = np.arange(len(values)) - (len(values) - 1) / 2
    return float(values @ index / (index @ index)) if len(values) > 1 else np.nan
