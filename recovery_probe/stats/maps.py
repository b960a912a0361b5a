"""Maps: a number for every pair of documents, of episodes, or of representations. `cycle` is a
(T, T) map of the documents in the order of their cycle."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from recovery_probe.stats.inference import Floats, Ints, mean_of_counted


def cosines(gram: Floats) -> Floats:
    """Of a (…, n, n) matrix of inner products; NaN for a vector of no length."""
    norm = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / norm[..., :, None] / norm[..., None, :]  # a product of two may be 0


def by_lag(episodes: Floats) -> Floats:
    """(lag,): mean over all pairs that far apart, of an (n, n) map; lag 0 first."""
    return np.array([np.diagonal(episodes, lag).mean() for lag in range(len(episodes))])


def by_cyclic_lag(cycle: Floats) -> Floats:
    """(…, T // 2): mean over documents 1, 2, … places apart in the cycle, of (…, T, T) maps;
    without NaN."""
    apart = distances(cycle.shape[-1])
    lags = range(1, cycle.shape[-1] // 2 + 1)
    return np.stack([mean_of_counted(cycle[..., apart == lag]) for lag in lags], axis=-1)


def distances(documents: int) -> Floats:
    """(T, T): how many places apart documents are in the cycle, the shorter way round."""
    place = np.arange(documents)
    apart = np.abs(place[:, None] - place)
    return np.minimum(apart, documents - apart).astype(float)


def since_last(schedule: Ints, episodes: int, documents: int) -> Floats:
    """(T, T): how far apart documents are in the order in which each was last trained on, of the
    first `episodes` of a schedule; those that were not yet are together, first."""
    last = np.full(documents, -1)
    last[schedule[:episodes]] = np.arange(episodes)  # of several places the last is kept
    _, rank = np.unique(last, return_inverse=True)
    return np.abs(rank[:, None] - rank).astype(float)


def peak(cycle: Floats) -> Floats:
    """(…,): where in the cycle (0 first, 1 last) the document stands whose mean with the others is
    largest, of (…, T, T) maps; NaN where none has one."""
    documents = cycle.shape[-1]
    means = mean_of_counted(np.where(np.eye(documents, dtype=bool), np.nan, cycle))
    place = np.where(np.isfinite(means), means, -np.inf).argmax(axis=-1) / max(documents - 1, 1)
    return np.where(np.isfinite(means).any(axis=-1), place, np.nan)


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
