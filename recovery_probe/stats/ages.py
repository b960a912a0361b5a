"""Losses by age: episodes since a document's last visit, 1 right after it. `losses` and `schedule`
as in `scores`. A case is a wait that lasts as many episodes as there are documents, or more."""

from __future__ import annotations

import itertools

import numpy as np

from recovery_probe.stats.inference import Floats, Ints, bootstrap_interval, counted_means
from recovery_probe.stats.scores import MIN_FORGETTING, Schedule, turns


def by_age(
    losses: Floats, schedule: Schedule, documents: int, cycle: int | None = None
) -> tuple[Floats, Floats]:
    """Of T documents' n-th waits: (waits, T, ages) losses at the ages 1 … `cycle`, T when not
    given, and (waits, T), the episode on the document that came before. NaN of what is no case: a
    wait that is shorter, that does not end, or whose end is not reached. In a cycle every wait is a
    case, and the last age is right before the next episode on the document."""
    each, cycle = turns(schedule, documents), cycle or documents
    waits = max(0, max(map(len, each)) - 1)
    curves = np.full((waits, documents, cycle), np.nan)
    begins = np.full((waits, documents), np.nan)
    for document, episodes in enumerate(each):
        for n, (this, following) in enumerate(itertools.pairwise(episodes)):
            ages = losses[this + 1 : this + cycle + 1, document]
            if following - this >= cycle == len(ages) and np.isfinite(ages).all():
                curves[n, document], begins[n, document] = ages, this
    return curves, begins


def ages_at(schedule: Schedule, documents: int) -> tuple[Ints, Ints]:
    """(episodes, documents) each: the age at which an episode finds a document, the episodes since
    the last one on it, 0 in its own; and how many episodes the wait lasts in which that is. -1
    before the first, and of a wait that does not end."""
    own = schedule[:, None] == np.arange(documents)
    episode = np.arange(len(schedule))[:, None]
    last = np.maximum.accumulate(np.where(own, episode, -1), axis=0)
    following = np.full(own.shape, len(schedule))
    following[:-1] = np.where(own, episode, len(schedule))[1:]
    following = np.minimum.accumulate(following[::-1], axis=0)[::-1]
    known = last >= 0
    ends = known & (following < len(schedule))
    return np.where(known, episode - last, -1), np.where(ends, following - last, -1)


def at_times(curves: Floats, begins: Floats, when: Floats) -> Floats:
    """(waits, T, ages): a run's curves by age as they would be had the waits begun at other
    episodes, `when` (waits, T): on the straight line through the document's two cases nearest in
    time. NaN without two, and more than a wait before the first or after the last.

    Waits of T episodes or more begin early in a shuffled epoch, T/6 episodes before those of a
    cycle: a loss that falls with training would be called a gain of the cycle.
    """
    cycle = curves.shape[-1]
    moved = np.full((*when.shape, cycle), np.nan)
    for n, document in zip(*np.nonzero(np.isfinite(when)), strict=True):
        cases, time = np.flatnonzero(np.isfinite(begins[:, document])), when[n, document]
        known, own = begins[cases, document], curves[cases, document]
        if len(cases) < 2 or not known[0] - cycle < time < known[-1] + cycle:
            continue
        i = np.clip(np.searchsorted(known, time), 1, len(cases) - 1)
        share = (time - known[i - 1]) / (known[i] - known[i - 1])
        moved[n, document] = own[i - 1] + share * (own[i] - own[i - 1])
    return moved


def matched(run: Floats, control: Floats, middle: int) -> tuple[Floats, Floats, Floats]:
    """Of two (…, ages) losses of the same documents: the matched fall, (run's fall from age
    `middle` to the last) - (control's); the gain on arrival, control - run at the last age; the
    excess in mid-wait, run - control at `middle`. The first is the sum of the others."""
    gain = control[..., -1] - run[..., -1]
    excess = run[..., middle - 1] - control[..., middle - 1]
    fall = run[..., middle - 1] - run[..., -1]
    return fall - (control[..., middle - 1] - control[..., -1]), gain, excess


def own_tops(curves: Floats) -> tuple[Floats, Floats]:
    """(n,) each, of (n, ages) curves, of documents or means of them: the fall from the top to the
    last age, and the rise to it from the first."""
    top = curves.max(axis=1)
    return top - curves[:, -1], top - curves[:, 0]


def recovery_so_far(losses: Floats, schedule: Schedule) -> float:
    """The share of what was forgotten that has come back at age T, of the mean by age of each
    document's latest wait of T episodes or more; NaN before any, and where less than
    `MIN_FORGETTING` nats were forgotten."""
    curves, _ = by_age(losses, schedule, losses.shape[1])
    whole = np.asarray(np.isfinite(curves).all(axis=2))  # (waits, T)
    if not whole.any():
        return np.nan
    last = len(whole) - 1 - whole[::-1].argmax(axis=0)
    known = np.flatnonzero(whole.any(axis=0))
    fall, rise = own_tops(curves[last[known], known].mean(axis=0, keepdims=True))
    return float(fall[0] / rise[0]) if rise[0] >= MIN_FORGETTING else np.nan


def cross_fitted(curves: Floats, drawn: Ints) -> Floats:
    """(resamples,): the score of (documents, ages) curves, the (resamples, k) `drawn` ones: sums
    before the ratio, each document read at the age at which the mean of the others has its top: a
    document's own noise does not choose where it is read."""
    times = (drawn[..., None] == np.arange(len(curves))).sum(axis=1)  # (resamples, documents)
    total = times @ curves
    fall, rise = np.zeros((2, len(drawn)))
    for own, weight in zip(curves, times.T, strict=True):
        top = own[(total - weight[:, None] * own).argmax(axis=1)]
        fall += weight * (top - own[-1])
        rise += weight * (top - own[0])
    return share_of(fall / drawn.shape[1], rise / drawn.shape[1])


def share_of(part: Floats, whole: Floats) -> Floats:
    """`part` / `whole`; NaN where the whole is less than `MIN_FORGETTING` nats."""
    with np.errstate(invalid="ignore"):
        return part / np.where(whole >= MIN_FORGETTING, whole, np.nan)


def ratio_of_sums(part: Floats, whole: Floats, rng: np.random.Generator) -> Floats:
    """Value, low and high of the ratio of two sums over documents, (documents,) each, a percentile
    bootstrap over those that have both."""
    counted = np.isfinite(part) & np.isfinite(whole)
    part, whole = part[counted], whole[counted]
    if not len(part):
        return np.full(3, np.nan)
    bounds = bootstrap_interval(
        lambda drawn: share_of(part[drawn].mean(axis=1), whole[drawn].mean(axis=1)), len(part), rng
    )
    return np.array([share_of(part.mean(), whole.mean()), *bounds])


def last_waits(curves: Floats) -> Floats:
    """(T, ages): each document's last whole wait, of (waits, T, ages) curves with NaN where a wait
    is no case; NaN of one without any."""
    found = np.full(curves.shape[1:], np.nan)
    for wait in curves:
        whole = np.isfinite(wait).all(axis=-1)
        found[whole] = wait[whole]
    return found


def falls_together(loss: Floats, curves: Floats, drawn: Ints) -> Floats:
    """(resamples, k): how far `curves` (documents, ages, k) fall up to the last age, means over the
    (resamples, documents) `drawn` ones: all of them from the age at which the mean of the other
    documents' `loss` (documents, ages) has its top."""
    times = (drawn[..., None] == np.arange(len(loss))).sum(axis=1)  # (resamples, documents)
    total = times @ loss
    falls = np.zeros((len(drawn), curves.shape[-1]))
    for own, each, weight in zip(loss, curves, times.T, strict=True):
        top = (total - weight[:, None] * own).argmax(axis=1)
        falls += weight[:, None] * (each[top] - each[-1])
    return falls / drawn.shape[1]


def left_out_errors(change: Floats, state: Floats) -> Floats:
    """(4, documents): squared errors, summed over ages, with which a document's `change` in loss
    (documents, ages) is foretold from all others: by their mean; by their mean at each age; by a
    number proportional to `state` (documents, ages); and by their mean at each age with what a
    document's state differs from theirs there."""
    documents = len(change)
    errors = np.full((4, documents), np.nan)
    for document in range(documents) if documents > 2 else ():
        others = np.arange(documents) != document
        y, q = change[others], state[others]
        own_y, own_q = change[document], state[document]
        level, usual = y.mean(axis=0), q.mean(axis=0)
        apart = q - usual
        within = (apart * (y - level)).sum() / max((apart**2).sum(), 1e-300)
        through = (q * y).sum() / max((q**2).sum(), 1e-300)
        foretold = [y.mean(), level, through * own_q, level + within * (own_q - usual)]
        errors[:, document] = [((own_y - each) ** 2).sum() for each in foretold]
    return errors


def ratio_of_means(
    part: Floats, whole: Floats, rng: np.random.Generator, minus: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Value, low and high, (…) each, of the mean of `part` (documents, …), less that of `minus`,
    over the mean of `whole` (documents,): each mean of the documents that have it, NaN being none,
    so that the parts may be of other documents than the whole is. A percentile bootstrap over those
    that have any. NaN where the whole is less than `MIN_FORGETTING` nats."""
    parts = [part] if minus is None else [part, minus]
    columns = [each.reshape(len(whole), -1) for each in (*parts, whole)]
    each = np.concatenate(columns, axis=1)
    each = each[np.isfinite(each).any(axis=1)]

    def of(drawn: Ints) -> Floats:
        means = counted_means(each, drawn)
        first, *second = np.split(means[:, :-1], len(parts), axis=1)
        return share_of(first - sum(second), means[:, -1:])

    if not len(each):
        none = np.full((3, *part.shape[1:]), np.nan)
        return none[0], none[1], none[2]
    (value,) = of(np.arange(len(each))[None])
    low, high = bootstrap_interval(of, len(each), rng)
    shape = part.shape[1:]
    return value.reshape(shape), low.reshape(shape), high.reshape(shape)
