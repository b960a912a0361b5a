"""Pair data: a number for every ordered pair of items, (…, n, n), whose diagonal does not count.

Pairs that share an item are alike, so that n(n-1) of them tell less than as many numbers would. By
the social-relations model (Warner, Kenny and Stoto 1979) pair (i, j) is a mean, a row effect of i,
a column effect of j, and a rest. The interval of a mean resamples items, as rows and as columns at
once: its variance is put together from those of the effects and the rest, in closed form. With the
effects out, pairs that share an item are uncorrelated, and each pair counts for itself.

Written as what resampling comes to, for what resamples items by drawing them has pairs of an item
with itself, and takes the rest for a part of the effects: twice the variance where there are none.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recovery_probe.stats.inference import Floats, Ints, mean_of_counted

Bools = NDArray[np.bool_]


class Effects(NamedTuple):
    """pair (i, j) = mean + row i + column j + rest; effects add up to 0, and so do rests."""

    mean: Floats  # (…,)
    row: Floats  # (…, n)
    column: Floats  # (…, k)
    rest: Floats  # (…, n, k), of an item with itself 0


class Variances(NamedTuple):
    """Each (…,), and unbiased, so that it may come out below 0."""

    row: Floats
    column: Floats
    both: Floats  # covariance of an item's row and column effects
    rest: Floats
    pair: Floats  # covariance of the rests of (i, j) and (j, i)


def complete(maps: Floats) -> Ints:
    """Which items of (maps, n, n) pairs are left when those with the most gaps go, one after the
    other, until no map has one off its diagonal. A map without any pair is not asked."""
    n = maps.shape[-1]
    off = ~np.eye(n, dtype=bool)
    gaps = ~np.isfinite(maps) & off
    gaps = np.any(gaps[~gaps[:, off].all(axis=1)], axis=0)
    kept = np.arange(n)
    while gaps.any():
        worst = (gaps.sum(axis=0) + gaps.sum(axis=1)).argmax()
        kept, gaps = (np.delete(kept, worst), np.delete(np.delete(gaps, worst, 0), worst, 1))
    return kept


def effects(pairs: Floats) -> Effects:
    """Of all pairs of n items: least squares off the diagonal. Of fewer than four, which would
    leave nothing over, only their mean."""
    n = pairs.shape[-1]
    off = ~np.eye(n, dtype=bool)
    counted = np.where(off, pairs, 0.0)
    others = n - 1 or np.nan
    row, column = counted.sum(axis=-1) / others, counted.sum(axis=-2) / others
    mean = row.mean(axis=-1)
    row, column = row - mean[..., None], column - mean[..., None]
    # The mean of a row lacks its own column, and so has a little of its item's other effect.
    scale = (n - 1) / (n * (n - 2)) if n > 3 else np.nan
    row, column = scale * ((n - 1) * row + column), scale * ((n - 1) * column + row)
    fitted = mean[..., None, None] + row[..., :, None] + column[..., None, :]
    return Effects(mean, row, column, np.where(off, pairs - fitted, 0.0))


def crossed_effects(pairs: Floats) -> Effects:
    """Of (…, n, k) pairs of two kinds of items."""
    row, column = mean_of_counted(pairs), mean_of_counted(pairs, axis=-2)
    mean = mean_of_counted(row)
    row, column = row - mean[..., None], column - mean[..., None]
    fitted = mean[..., None, None] + row[..., :, None] + column[..., None, :]
    return Effects(mean, row, column, pairs - fitted)


def _mean_squares(rest: Floats) -> tuple[Floats, Floats]:
    """Of the sum and of the difference of a pair's two rests, each over √2; (…,)."""
    n, other = rest.shape[-1], np.swapaxes(rest, -1, -2)
    alike, unlike = (((rest + sign * other) ** 2).sum(axis=(-1, -2)) / 2 for sign in (1, -1))
    return alike / max(n * (n - 3), 1), unlike / max((n - 1) * (n - 2), 1)


def variances(of: Effects) -> Variances:
    """Of the social-relations model, from mean squares."""
    n = of.row.shape[-1]
    alike, unlike = _mean_squares(of.rest)
    rest, pair = (alike + unlike) / 2, (alike - unlike) / 2
    row, column, both = (
        (a * b).sum(axis=-1) / (n - 1)
        for a, b in ((of.row, of.row), (of.column, of.column), (of.row, of.column))
    )
    own, other = (n - 1) / max(n * (n - 2), 1), 1 / max(n * (n - 2), 1)
    return Variances(
        row - own * rest - other * pair,
        column - own * rest - other * pair,
        both - own * pair - other * rest,
        rest,
        pair,
    )


# A value with its 95% interval: (…,) each.
Interval: TypeAlias = tuple[Floats, Floats, Floats]


def mean_of_pairs(square: Floats) -> Interval:
    """Of (…, n, n) pairs, over items."""
    of, rest, noise = _of_square(square)
    return _over_items(of.mean, rest, (of.row + of.column, noise))


def mean_of_crossed(crossed: Floats) -> Interval:
    """Of (…, n, k) pairs, over items of both kinds."""
    of, rest, (of_row, of_column) = _of_crossed(crossed)
    return _over_items(of.mean, rest, (of.row, of_row), (of.column, of_column))


def pairs_minus_crossed(square: Floats, crossed: Floats) -> Interval:
    """The mean of (…, n, n) pairs minus that of pairs of these items with k others, (…, n, k)."""
    ours, rest, noise = _of_square(square)
    theirs, their_rest, (of_row, of_column) = _of_crossed(crossed)
    return _over_items(
        ours.mean - theirs.mean,
        rest + their_rest,
        (ours.row + ours.column - theirs.row, noise + of_row),
        (theirs.column, of_column),
    )


def _of_square(square: Floats) -> tuple[Effects, Floats, Floats]:
    """With the variance that the rests give the mean, and the influence of each item."""
    n, of = square.shape[-1], effects(square)
    alike, _ = _mean_squares(of.rest)
    return of, alike / max(n * (n - 1), 1), 2 * alike / max(n - 2, 1)


def _of_crossed(crossed: Floats) -> tuple[Effects, Floats, tuple[Floats, Floats]]:
    """The same; the influences of the items of each kind."""
    n, k = (max(size, 1) for size in crossed.shape[-2:])
    of = crossed_effects(crossed)
    rest = (of.rest**2).sum(axis=(-1, -2)) / max((n - 1) * (k - 1), 1)
    return of, rest / (n * k), (rest / k, rest / n)


def _over_items(value: Floats, rest: Floats, *kinds: tuple[Floats, Floats]) -> Interval:
    """Of kinds of items, each with the (…, n) influences that they have on the value and the
    variance that the rests give one of these. That is taken off the variance of influences, and
    what the rests give the value is added. No interval over fewer than three of a kind."""
    variance, spread = rest, np.zeros_like(rest)
    for influence, noise in kinds:
        n = influence.shape[-1] if influence.shape[-1] > 2 else np.nan
        part = np.maximum(_variance(influence) - noise, 0) / n
        variance, spread = variance + part, spread + part**2 / (n - 1)
    return _with_interval(value, variance, spread)


def _with_interval(value: Floats, variance: Floats, spread: Floats) -> Interval:
    """By Student's t, of a variance that is estimated, with half of its own as `spread`
    (Satterthwaite 1946)."""
    import scipy.stats  # here, so that opening a run does not wait for it

    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(spread > 0, variance**2 / spread, np.inf)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return value, value - half, value + half


def _variance(values: Floats) -> Floats:
    """Over the last axis; NaN for fewer than two."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.var(axis=-1, ddof=1)


def means_of_classes(square: Floats, classes: Bools) -> Interval:
    """(…, classes): means of (…, n, n) pairs over each of (classes, n, n) masks, in which an item
    is as often row as column; over items."""
    n = square.shape[-1]
    of, _, noise = _of_square(square)
    of_items = np.maximum(_variance(of.row + of.column) - noise, 0) / n
    scale = n * (n - 1) / max((n - 1) * (n - 2) - 1, 1)  # degrees of freedom gone to effects
    found = []
    for which in classes:
        twice = which & which.T  # both directions of a pair: one case
        rest = np.where(twice, (of.rest + np.swapaxes(of.rest, -1, -2)) / 2, of.rest)[..., which]
        cases = which.sum() - twice.sum() / 2
        of_rest = scale * _variance(rest) / cases
        spread = of_items**2 / (n - 1) + of_rest**2 / max(cases - 1, 1)
        value = mean_of_counted(square[..., which])
        found.append(_with_interval(value, of_items + of_rest, spread))
    value, low, high = (np.stack(each, axis=-1) for each in zip(*found, strict=True))
    return value, low, high


def strengths(pairs: Floats, rounds: int = 20) -> tuple[Floats, Floats]:
    """a and b (…, n), of which the products a_i b_j come closest to (…, n, n) pairs off the
    diagonal, by alternating least squares: what items that differ in strength alone would give."""
    counted = np.where(np.eye(pairs.shape[-1], dtype=bool), 0.0, pairs)

    def slopes(pairs: Floats, b: Floats) -> Floats:
        """Of each row, on the b of the others."""
        squares = (b**2).sum(axis=-1, keepdims=True) - b**2
        slope = (pairs @ b[..., None])[..., 0] / np.where(squares > 0, squares, 1)
        return np.where(squares > 0, slope, 0.0)

    a = b = np.ones(pairs.shape[:-1])
    for _ in range(rounds):
        b = slopes(np.swapaxes(counted, -1, -2), a)
        a = slopes(counted, b)
    return a, b


def _products(a: Floats, b: Floats) -> Floats:
    """What effects leave of the products a_i b_j; 0 where that is rounding."""
    product = a[..., :, None] * b[..., None, :]
    rest = effects(product).rest
    rounded = _size(rest) < 1e-10 * _size(product)
    return np.where(rounded[..., None, None], 0.0, rest)


def _size(pairs: Floats) -> Floats:
    return np.sqrt((pairs**2).sum(axis=(-1, -2)))


def without_effects(pairs: Floats) -> Floats:
    """(…, n, n): the rests of pairs, less what products of items' strengths are of them."""
    rest, product = effects(pairs).rest, _products(*strengths(pairs))
    size = (product**2).sum(axis=(-1, -2))
    slope = (rest * product).sum(axis=(-1, -2)) / np.where(size > 0, size, 1)
    return rest - slope[..., None, None] * product


def correlation_of_pairs(pairs: Floats, distance: Floats) -> Floats:
    """(…,), of (…, n, n) pairs with a distance (n, n), off the diagonal and as they are."""
    off = ~np.eye(pairs.shape[-1], dtype=bool)
    x, d = pairs[..., off], distance[off]
    x, d = x - x.mean(axis=-1, keepdims=True), d - d.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return x @ d / np.sqrt((x**2).sum(axis=-1) * (d @ d))


def near_minus_far(rest: Floats, apart: Floats) -> Interval:
    """Mean of the (…, n, n) rests of neighbours minus that of items half a cycle off, of which
    `apart` (n, n) says how far each pair is; over pairs. NaN where these are the same."""
    n, far = rest.shape[-1], apart.max()
    each = (rest + np.swapaxes(rest, -1, -2)) / 2
    groups = [each[..., np.triu(apart == lag, 1)] for lag in (1, far)]
    if n < 4 or far < 2:
        undefined = np.full(rest.shape[:-2], np.nan)
        return undefined, undefined, undefined
    # Effects have taken n of the n(n-1)/2 degrees of freedom.
    parts = [_variance(group) / group.shape[-1] * (n - 1) / (n - 3) for group in groups]
    spread = sum(part**2 / (g.shape[-1] - 1) for part, g in zip(parts, groups, strict=True))
    near, away = map(mean_of_counted, groups)
    return _with_interval(near - away, parts[0] + parts[1], spread)


def reciprocity(rests: Floats, minus: Floats | None = None) -> Interval:
    """Correlation of the rests of (i, j) and (j, i), of (…, n, n), less that of others of the same
    items; over pairs."""
    r, influence = _reciprocity(rests)
    if minus is not None:
        other, of_other = _reciprocity(minus)
        r, influence = r - other, influence - of_other
    n = rests.shape[-1]
    freedom = (n - 1) * (n - 2) / 2 - 1 if n > 3 else np.nan  # what effects leave
    variance = (influence**2).mean(axis=-1) / freedom
    # A product of two varies four times as much about its mean as a square does of one.
    return _with_interval(r, variance, 4 * variance**2 / (n * (n - 1) / 2))


def _reciprocity(rests: Floats) -> tuple[Floats, Floats]:
    """With the influence of each pair on it."""
    i, j = np.triu_indices(rests.shape[-1], 1)
    product = rests[..., i, j] * rests[..., j, i]
    square = (rests[..., i, j] ** 2 + rests[..., j, i] ** 2) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / square.mean(axis=-1, keepdims=True)
        r = scale * product.mean(axis=-1, keepdims=True)
        return r[..., 0], scale * (product - r * square)


def reciprocity_by_chance(rests: Floats, shuffles: Ints) -> Floats:
    """(shuffles, …): the correlation of `reciprocity` when each of (…, n, n) rests above the
    diagonal meets a random one from below it, of which each of (shuffles, n(n-1)/2) is an order.
    Effects of items are taken out again. An order of the items (Mantel) would not do: all n(n-1)
    products are then different, where (i, j) with (j, i) gives each twice, so that chance varies
    by √2 more than that would say."""
    i, j = np.triu_indices(rests.shape[-1], 1)
    found = []
    for shuffle in shuffles:
        mixed = np.zeros_like(rests)
        mixed[..., i, j], mixed[..., j, i] = rests[..., i, j], rests[..., j[shuffle], i[shuffle]]
        rest = effects(mixed).rest
        with np.errstate(invalid="ignore"):
            found.append((rest * np.swapaxes(rest, -1, -2)).sum(axis=(-1, -2)) / _size(rest) ** 2)
    return np.stack(found)


def partial_mantel(
    pairs: Floats, distance: Floats, rivals: Floats, orders: Ints
) -> tuple[Floats, Floats]:
    """(maps,): correlation of (maps, n, n) pairs, both directions together, with an (n, n)
    distance, after taking out of both the effects of items, the products of their strengths and
    the (rivals, n, n) other distances. And (orders, maps): the same when what is left of the pairs
    has its items in each of (orders, n) orders, and the others are taken out again (Mantel 1967;
    Freedman and Lane 1983). NaN where nothing is left."""
    n = pairs.shape[-1]
    above = np.triu_indices(n, 1)
    defined = np.asarray(np.isfinite(pairs[:, *above]).all(axis=-1))
    pairs = np.where(defined[:, None, None], pairs, 0.0)
    a, b = strengths(pairs)
    if n < 4:
        return np.full(len(pairs), np.nan), np.full((len(orders), len(pairs)), np.nan)

    def rests(maps: Floats) -> Floats:
        return effects((maps + np.swapaxes(maps, -1, -2)) / 2).rest[..., *above]

    x, d, others = rests(pairs), rests(distance), rests(rivals)
    z = np.stack(np.broadcast_arrays(rests(_products(a, b)), *others[:, None]), axis=1)
    length = np.sqrt((z**2).sum(axis=-1, keepdims=True))
    length = np.where(length > 0, length, 1)
    z = z / length  # (maps, what is taken out, pairs)
    inverse = np.linalg.pinv(z @ np.swapaxes(z, 1, 2), rcond=1e-9, hermitian=True)
    d_on_z = (inverse @ (z @ d)[..., None])[..., 0]
    all_of_it = (x**2).sum(axis=-1)
    x = x - (np.swapaxes(z, 1, 2) @ (inverse @ (z @ x[..., None])))[..., 0]
    x2, d2 = (x**2).sum(axis=-1), d @ d - np.einsum("ma,map,p->m", d_on_z, z, d, optimize=True)
    defined &= (x2 > 1e-18 * all_of_it) & (d2 > 1e-9 * (d @ d))
    fixed, whole = _whole(np.stack([d, *others]), n), _whole(x, n)

    def correlations(orders: Ints) -> Floats:
        """(orders, maps). The order is given to what x is multiplied with, which comes to the same
        and is one product for all maps; it leaves effects out as they are."""
        places = orders[:, above[0]] * n + orders[:, above[1]]
        x_d, *x_others = (of.ravel().take(places) @ x.T for of in fixed)
        own = [
            ((u[orders] @ m) * v[orders]).sum(axis=1) / 2
            for u, m, v in zip(a, whole, b, strict=True)
        ]
        x_z = np.stack([np.stack(own, axis=1), *x_others]) / length[..., 0].T[:, None]
        left = x2 - np.einsum("aom,mab,bom->om", x_z, inverse, x_z, optimize=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (x_d - np.einsum("ma,aom->om", d_on_z, x_z)) / np.sqrt(left * d2)
        return np.where(defined, r, np.nan)

    (r,) = correlations(np.arange(n)[None])
    # A hundred at a time: each has a number for every pair.
    parts = np.array_split(orders, -(-len(orders) // 100))
    return r, np.concatenate([correlations(part) for part in parts])


def _whole(above: Floats, n: int) -> Floats:
    """(…, n, n), symmetric and with 0 on its diagonal, of what stands above that."""
    whole = np.zeros((*above.shape[:-1], n, n))
    whole[..., *np.triu_indices(n, 1)] = above
    return whole + np.swapaxes(whole, -1, -2)
