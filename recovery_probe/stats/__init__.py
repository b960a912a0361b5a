"""Numeric kernels: plain arrays in, plain arrays out, no names and no figures.

`losses` is always (rows, documents): row k after k episodes, row 0 before any training. A row
of NaN is one that has not been reached. `schedule` is (episodes,): the document of each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why a document's score at an epoch is left out; 0 is a score that counts.
COUNTED, NOT_REACHED, NEVER_ROSE, TOO_LITTLE = range(4)
REASONS = {
    NOT_REACHED: "its next episode was not reached",
    NEVER_ROSE: "its loss only fell between two episodes on it: nothing was forgotten",
    TOO_LITTLE: "it forgot less than the least forgetting asked for: the ratio means nothing",
}
MIN_FORGETTING = 0.01  # nats


def visits(schedule: NDArray[np.integer], documents: int) -> Ints:
    """(documents, epochs): the episodes of each document, in order. Every document must come
    equally often (`ValueError`)."""
    counts = np.bincount(schedule, minlength=documents)
    if len(counts) > documents or np.any(counts != counts[0]):
        raise ValueError(f"documents come {counts.tolist()} times, not equally often")
    return np.argsort(schedule, kind="stable").reshape(documents, -1)


def recovery_per_document(
    losses: Floats, schedule: NDArray[np.integer], min_forgetting: float = MIN_FORGETTING
) -> tuple[Floats, Ints]:
    """Recovery score of every document between its n-th and (n+1)-th episode, n = 1 … E-1.

    RS(n) = (l_max(n) - l_before(n)) / (l_max(n) - l_after(n-1)): the share of what was forgotten
    that has come back right before the document does (paper, section 3). Losses in nats.

    Returns (epochs - 1, documents) scores, NaN where left out, and the reason for each, one of
    `COUNTED`, `NOT_REACHED`, `NEVER_ROSE`, `TOO_LITTLE`.
    """
    documents = int(schedule.max()) + 1
    turns = visits(schedule, documents)
    scores = np.full((turns.shape[1] - 1, documents), np.nan)
    reasons = np.full(scores.shape, NOT_REACHED, dtype=np.int64)
    for document, episodes in enumerate(turns):
        for n, (this, following) in enumerate(itertools.pairwise(episodes)):
            between = losses[this + 1 : following + 1, document]
            if len(between) == following - this and np.isfinite(between).all():
                scores[n, document], reasons[n, document] = _score(between, min_forgetting)
    return scores, reasons


def _score(between: Floats, min_forgetting: float) -> tuple[float, int]:
    """The score of one stretch of loss, from right after an episode to right before the next."""
    after, top, before = between[0], between.max(), between[-1]
    if top <= after:
        return np.nan, NEVER_ROSE
    if top - after < min_forgetting:
        return np.nan, TOO_LITTLE
    return float((top - before) / (top - after)), COUNTED


def shift_aligned(losses: Floats, documents: int) -> Floats:
    """Each document's curve of a cyclic run, moved so that row 0 is right before its first
    episode: ((E-1)·T + 2, T), the rows for which every document has a value (paper, A.4)."""
    rows = len(losses) - documents + 1
    start = np.arange(documents)
    return losses[np.arange(rows)[:, None] + start, start]


def recovery_of_curve(
    curve: Floats, documents: int, min_forgetting: float = MIN_FORGETTING
) -> tuple[Floats, Ints]:
    """Recovery score, by epoch, of a document-averaged shift-aligned curve: the reading that the
    paper's published bars match. The last axis of `curve` is time; returns scores (…, E-1), NaN
    where left out, and the reasons, as `recovery_per_document` does.
    """
    epochs = (curve.shape[-1] - 2) // documents + 1
    scores = np.full((*curve.shape[:-1], epochs - 1), np.nan)
    reasons = np.full(scores.shape, NOT_REACHED, dtype=np.int64)
    for n in range(epochs - 1):
        between = curve[..., n * documents + 1 : (n + 1) * documents + 1]
        after, top, before = between[..., 0], between.max(axis=-1), between[..., -1]
        forgotten = top - after
        reached = np.isfinite(between).all(axis=-1)
        reason = np.select(
            [~reached, forgotten <= 0, forgotten < min_forgetting],
            [NOT_REACHED, NEVER_ROSE, TOO_LITTLE],
            default=COUNTED,
        )
        reasons[..., n] = reason
        with np.errstate(invalid="ignore", divide="ignore"):
            scores[..., n] = np.where(reason == COUNTED, (top - before) / forgotten, np.nan)
    return scores, reasons


def online_loss(train_loss: Floats, steps: int, schedule: NDArray[np.integer]) -> Floats:
    """(epochs, documents): the loss of each document as it was about to be trained on, the first
    training loss of its episode (prequential loss; paper, section 3). NaN where not reached."""
    first = train_loss.reshape(-1, steps)[:, 0]
    return first[visits(schedule, int(schedule.max()) + 1)].T


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


def circular_correlation(theta: Floats, phi: Floats) -> Floats:
    """Correlation of two angles (radians) over the last axis, -1 … 1 (Fisher and Lee 1983):

        Σ sin(θᵢ-θⱼ) sin(φᵢ-φⱼ) / √(Σ sin²(θᵢ-θⱼ) Σ sin²(φᵢ-φⱼ)), over pairs i < j.

    1 when one turns with the other, -1 when it turns against it, near 0 when neither.
    """

    def pairs(a: Floats, b: Floats) -> Floats:
        # Σ over all i, j of sin(aᵢ-aⱼ) sin(bᵢ-bⱼ), from 2 sin x sin y = cos(x-y) - cos(x+y)
        both, apart = np.exp(1j * (a + b)).sum(-1), np.exp(1j * (a - b)).sum(-1)
        return (np.abs(apart) ** 2 - np.abs(both) ** 2) / 2

    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs(theta, phi) / np.sqrt(pairs(theta, theta) * pairs(phi, phi))


def compact(vectors: Floats) -> Floats:
    """(n, at most n) vectors with the inner products of (n, d) ones."""
    return np.asarray(np.linalg.qr(vectors.T, mode="r")).T


def episode_residuals(
    moved: Floats, documents: int, out: Floats | None = None
) -> tuple[Floats, Ints]:
    """Weight residuals (rows, d) of the updates (E·T, d) of all episodes, and the episodes done at
    each row. `out` is where they go, if given.

    w_res(t) = w(t) - mean of w over the window of length T centred on t (paper, figure 8c). For
    an even T the window's two ends count half, so that it holds one cycle exactly: what has the
    cycle's period stays whole and a straight drift goes.
    """
    half, place = documents // 2, np.arange(documents)
    rows = np.arange(half, len(moved) + 1 - half)
    # Of the T updates from a window's start on: in w(t) when before t, less the share of the
    # window that comes after.
    after = (documents - place - (1 if documents % 2 else 0.5)) / documents
    band = np.zeros((documents, 2 * documents), moved.dtype)  # of T rows at a time
    band[place[:, None], place[:, None] + place] = (place < half) - after
    found = np.empty((len(rows), moved.shape[1]), moved.dtype) if out is None else out
    for start in range(0, len(rows), documents):
        these, window = found[start : start + documents], moved[start : start + 2 * documents]
        np.matmul(band[: len(these), : len(window)], window, out=these)
    return found, rows


def epoch_loops(moved: Floats, documents: int) -> Floats:
    """Loops (E, T, d) of the updates (E·T, d) of all episodes: the weights after each episode,
    less the straight line from the first to the last of its epoch, less the epoch's mean. Nothing
    of an epoch's loop is shared with another's, and its ends meet, so that a loop turned about
    itself (`rotations`) is as smooth as it was."""
    weights = moved.reshape(-1, documents, moved.shape[1]).cumsum(axis=1)
    first, last = weights[:, :1], weights[:, -1:]
    loops = weights - first - np.linspace(0, 1, documents)[:, None] * (last - first)
    return loops - loops.mean(axis=1, keepdims=True)


def rotations(documents: int, epochs: int, count: int, rng: np.random.Generator) -> Ints:
    """(count, E·T): orders of the episodes in which each epoch is turned by an amount of its own.

    What repeats from epoch to epoch falls out of step; what an epoch is like within itself stays,
    above all how smoothly one episode follows another. A free permutation would destroy the
    smoothness that any trajectory has, and call a random walk cyclic.
    """
    shift = rng.integers(documents, size=(count, epochs, 1))
    within = (np.arange(documents) + shift) % documents
    return (within + documents * np.arange(epochs)[:, None]).reshape(count, -1)


def cosines(gram: Floats) -> Floats:
    """Of a (…, n, n) matrix of inner products; NaN for a vector of no length."""
    norm = np.sqrt(np.einsum("...ii->...i", gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / (norm[..., :, None] * norm[..., None, :])


def slope_with_p(values: Floats, limit: int = 5040) -> tuple[float, float]:
    """Slope of values (n,) against their index, and its two-sided p-value over all orders of them
    (over `limit` random ones when there are more)."""
    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        return np.nan, np.nan
    index = np.arange(n) - (n - 1) / 2
    slope = float(index @ values / (index @ index))
    if math.factorial(n) <= limit:
        orders = np.array(list(itertools.permutations(values)))
        null = np.abs(orders @ index) / (index @ index)
        return slope, float((null >= abs(slope) * (1 - 1e-9)).mean())
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.broadcast_to(values, (limit, n)), axis=1)
    null = np.abs(orders @ index) / (index @ index)
    return slope, float(permutation_p(abs(slope), null))


def sign_flip_p(values: Floats, limit: int = 12) -> float:
    """Two-sided p-value of the sum of independent values (n,) that are as likely to be negative:
    over all their signs (over 4096 random ones for more than `limit`)."""
    if len(values) <= limit:
        signs = np.array(list(itertools.product([1, -1], repeat=len(values))))
        return float((np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-9)).mean())
    signs = np.random.default_rng(0).choice([1, -1], size=(4096, len(values)))
    return float(permutation_p(abs(values.sum()), np.abs(signs @ values)))


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


def until_turn(losses: Floats, schedule: NDArray[np.integer], documents: int) -> Floats:
    """(documents, waits, lags): the loss of each document while it waits for its next turn.

    `[d, n, k]` is document d's, k episodes before its (n+2)-th episode and after its (n+1)-th:
    k = 0 right before, the last k of a wait right after. NaN beyond a wait's length. Any schedule
    will do; the wait after a document's last episode has no end and is left out.
    """
    turns = [np.flatnonzero(schedule == document) for document in range(documents)]
    spans = [np.diff(episodes) for episodes in turns]
    lags = max((int(span.max()) for span in spans if len(span)), default=0)
    found = np.full((documents, max(map(len, spans), default=0), lags), np.nan)
    for document, (episodes, span) in enumerate(zip(turns, spans, strict=True)):
        for n, (following, length) in enumerate(zip(episodes[1:], span, strict=True)):
            rows = np.arange(following, following - length, -1)
            found[document, n, :length] = losses[rows, document]
    return found
