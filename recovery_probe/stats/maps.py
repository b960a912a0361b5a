"""Maps: a number for every pair of documents, of episodes, or of representations. `cycle` is a
(T, T) map of the documents in the order of their cycle."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from recovery_probe.stats.inference import (
    Floats,
    Ints,
    permutation_p,
    resampled_means_of_counted,
)


def cosines(gram: Floats) -> Floats:
    """Of a (…, n, n) matrix of inner products; NaN for a vector of no length."""
    norm = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / (norm[..., :, None] * norm[..., None, :])


def by_lag(episodes: Floats) -> Floats:
    """(lag,): mean over all pairs that far apart, of an (n, n) map; lag 0 first."""
    return np.array([np.diagonal(episodes, lag).mean() for lag in range(len(episodes))])


def at_lag(cycle: Floats, lag: int) -> Floats:
    """(T,): each document with the one `lag` places on in the cycle."""
    place = np.arange(len(cycle))
    return cycle[place, (place + lag) % len(cycle)]


def by_cyclic_lag(cycle: Floats) -> Floats:
    """(T // 2,): mean over documents 1, 2, … places apart in the cycle."""
    return np.array([at_lag(cycle, lag).mean() for lag in range(1, len(cycle) // 2 + 1)])


def near_minus_far(cycle: Floats) -> Floats:
    """(T,): each document with its two neighbours minus with those across the cycle, which differ
    from four documents on; NaN for fewer."""
    if len(cycle) < 4:
        return np.full(len(cycle), np.nan)
    near, far = ((at_lag(cycle, lag) + at_lag(cycle, -lag)) / 2 for lag in (1, len(cycle) // 2))
    return near - far


def distances(documents: int) -> Floats:
    """(T, T): how many places apart documents are in the cycle, the shorter way round."""
    place = np.arange(documents)
    apart = np.abs(place[:, None] - place)
    return np.minimum(apart, documents - apart).astype(float)


def peaks(cycle: Floats, drawn: Ints) -> Floats:
    """(resamples,): where in the cycle (0 first, 1 last) the document stands whose mean with the
    (resamples, T) `drawn` others is largest, of a symmetric map with NaN on its diagonal."""
    means = resampled_means_of_counted(cycle, drawn)
    return np.nanargmax(np.where(np.isnan(means), -2, means), axis=1) / (len(cycle) - 1)


def mantel(
    a: Floats, b: Floats, rng: np.random.Generator, permutations: int = 999
) -> tuple[float, float]:
    """Correlation between two (n, n) maps off their diagonals, and its two-sided p-value over
    random orders of the items of one of them (Mantel 1967). Pairs without a value are left out."""
    n = len(a)
    counted = ~np.eye(n, dtype=bool) & np.isfinite(a) & np.isfinite(b)
    if counted.sum() < 3:
        return np.nan, np.nan
    counted &= counted.T  # so that an order moves whole pairs
    orders = [np.arange(n), *(rng.permutation(n) for _ in range(permutations))]
    r = np.full(len(orders), np.nan)
    if counted.sum() == n * (n - 1):  # every order has the same pairs: one mean, one scale
        off = ~np.eye(n, dtype=bool)
        x, y = (np.where(off, m - m[off].mean(), 0.0) for m in (a, b))
        if (scale := np.sqrt((x**2).sum() * (y**2).sum())) > 0:
            r = np.array([(x[order][:, order] * y).sum() for order in orders]) / scale
        return float(r[0]), float(permutation_p(abs(r[0]), np.abs(r[1:])))
    for k, order in enumerate(orders):  # one at a time: a map of many documents is large
        both = counted & counted[np.ix_(order, order)]
        x, y = a[np.ix_(order, order)][both], b[both]
        x, y = x - x.mean(), y - y.mean()
        scale = np.sqrt((x @ x) * (y @ y))
        r[k] = x @ y / scale if scale > 0 else np.nan
    return float(r[0]), float(permutation_p(abs(r[0]), np.abs(r[1:])))


def u_centred(gram: Floats) -> Floats:
    """(…, n, n) with which Σ K̃ L̃ / (n(n-3)) is the unbiased HSIC (Székely and Rizzo 2014), with a
    zero diagonal; NaN for fewer than four."""
    n = gram.shape[-1]
    if n < 4:
        return np.full_like(gram, np.nan)
    off = gram * (1 - np.eye(n))
    rows = off.sum(axis=-1, keepdims=True)
    columns, whole = off.sum(axis=-2, keepdims=True), off.sum(axis=(-1, -2), keepdims=True)
    centred = off - rows / (n - 2) - columns / (n - 2) + whole / ((n - 1) * (n - 2))
    return centred * (1 - np.eye(n))


def debiased_cka(centred: Floats) -> Floats:
    """(epoch, layer, epoch, layer): linear CKA between representations of the same documents, from
    their U-centred (epoch, layer, n, n) matrices."""
    flat = rearrange(centred, "epoch layer document other -> (epoch layer) (document other)")
    return rearrange(
        cosines(flat @ flat.T),
        "(epoch layer) (epoch2 layer2) -> epoch layer epoch2 layer2",
        layer=centred.shape[1],
        layer2=centred.shape[1],
    )
