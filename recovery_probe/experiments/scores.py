"""What comes back of the same documents in several arms, and what share of that in the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recovery_probe import stats
from recovery_probe.analyze.estimate import Estimate
from recovery_probe.errors import Missing
from recovery_probe.record.run import Run

LEAST = 0.05  # a score below which nothing is a share of it
READINGS = ("curve", "crossfitted")


def first_waits(arms: Sequence[Run], documents: int) -> stats.Floats:
    """(arm, document, age): losses at the ages 1 to T, each after a document's first episode in
    an arm that trains twice on all of them in one order. Raises `Missing` where some has none."""
    found = []
    for arm in arms:
        curves, _ = stats.by_age(arm.losses.values, arm.schedule.values, documents)
        if not np.isfinite(curves[0]).all():
            raise Missing(f"{arm.path}: some document is not trained on twice, T episodes apart")
        found.append(curves[0])
    return np.stack(found)


def of_curves(curves: stats.Floats, drawn: stats.Ints) -> stats.Floats:
    """(resamples, arm): scores of the mean (age,) curves of (arm, document, age) losses, of the
    (resamples, k) `drawn` documents, the same in all arms."""
    each = [stats.share_of(*stats.own_tops(stats.resampled_means(c, drawn))) for c in curves]
    return np.stack(each, axis=1)


def crossfitted(curves: stats.Floats, drawn: stats.Ints) -> stats.Floats:
    """(resamples, arm): of the same, cross-fitted."""
    return np.stack([stats.cross_fitted(c, drawn) for c in curves], axis=1)


def shares(curves: stats.Floats, drawn: stats.Ints) -> stats.Floats:
    """(resamples, arm): scores as shares of the first arm's; NaN where that has less than
    `LEAST`."""
    scores = of_curves(curves, drawn)
    first = scores[:, :1]
    with np.errstate(invalid="ignore"):
        return scores / np.where(first >= LEAST, first, np.nan)


def interval(
    of: Callable[[stats.Floats, stats.Ints], stats.Floats],
    curves: stats.Floats,
    rng: np.random.Generator,
    null: float = 0.0,
) -> Estimate:
    """`of` curves, with a bootstrap over documents, drawn in all arms at once."""
    documents = curves.shape[1]
    (value,) = of(curves, np.arange(documents)[None])
    bounds = stats.bootstrap_interval(lambda drawn: of(curves, drawn), documents, rng)
    return Estimate(value, *bounds, null=np.full_like(value, null))


def of_arms(curves: stats.Floats, rng: np.random.Generator) -> Estimate:
    """Scores (arm, reading) of (arm, document, age) losses."""
    both = [interval(of, curves, rng) for of in (of_curves, crossfitted)]
    value, low, high, null = (
        np.stack([getattr(each, part) for each in both], axis=1)
        for part in ("value", "low", "high", "null")
    )
    return Estimate(value, low, high, null=null)
