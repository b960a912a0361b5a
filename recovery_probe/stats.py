"""Numeric kernels: plain arrays in, plain arrays out, no names and no figures.

`losses` is always (rows, documents): row k after k episodes, row 0 before any training. A row
of NaN is one that has not been reached. `schedule` is (episodes,): the document of each.
"""

from __future__ import annotations

import itertools
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
