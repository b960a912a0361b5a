"""Scores of losses. `losses` is always (rows, documents): row k after k episodes, row 0 before any
training. A row of NaN is one that has not been reached. `schedule` is (episodes,): the document of
each."""

from __future__ import annotations

import itertools

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from recovery_probe.stats.inference import Floats, Ints, mean_of_counted

Schedule = NDArray[np.integer]

# Why a document's score at an epoch is left out; 0 is a score that counts.
COUNTED, NOT_REACHED, NEVER_ROSE, TOO_LITTLE, NO_TURN = range(5)
REASONS = {
    NOT_REACHED: "its next episode was not reached",
    NEVER_ROSE: "its loss only fell between two episodes on it: nothing was forgotten",
    TOO_LITTLE: "it forgot less than the least forgetting asked for: the ratio means nothing",
    NO_TURN: "the schedule has no further episode on it: its wait does not end",
}
MIN_FORGETTING = 0.01  # nats


def turns(schedule: Schedule, documents: int) -> list[Ints]:
    """The episodes of each document, in order."""
    return [np.flatnonzero(schedule == document) for document in range(documents)]


def is_even(schedule: Schedule, documents: int) -> bool:
    """Whether every document comes equally often, and nothing else does."""
    counts = np.bincount(schedule, minlength=documents)
    return len(counts) == documents and bool((counts == counts[0]).all())


def once_an_epoch(schedule: Schedule, documents: int) -> bool:
    """Whether every epoch, as many episodes as documents, trains on each of them once."""
    if len(schedule) % documents:
        return False
    epochs = rearrange(schedule, "(epoch place) -> epoch place", place=documents)
    return bool((np.sort(epochs, axis=1) == np.arange(documents)).all())


def is_periodic(schedule: Schedule, documents: int) -> bool:
    """Whether every epoch trains on each document once, in one order for all epochs."""
    return once_an_epoch(schedule, documents) and bool(
        (schedule == np.resize(schedule[:documents], len(schedule))).all()
    )


def cycle(schedule: Schedule, documents: int) -> Ints:
    """(T,): the documents in the order of their cycle; of a schedule that has none, in the order of
    their numbers."""
    periodic = is_periodic(schedule, documents)
    return np.array(schedule[:documents] if periodic else np.arange(documents), dtype=np.int64)


def visits(schedule: Schedule, documents: int) -> Ints:
    """(documents, epochs): the episodes of each document, in order. `ValueError` unless every
    document comes equally often (`is_even`)."""
    if not is_even(schedule, documents):
        counts = np.bincount(schedule, minlength=documents).tolist()
        raise ValueError(f"documents come {counts} times, not equally often")
    episodes = np.argsort(schedule, kind="stable")
    return rearrange(episodes, "(document epoch) -> document epoch", document=documents)


def recovery_per_document(
    losses: Floats, schedule: Schedule, min_forgetting: float = MIN_FORGETTING
) -> tuple[Floats, Ints]:
    """Recovery score of every document between its n-th and (n+1)-th episode, n = 1, 2, …

    RS(n) = (l_max(n) - l_before(n)) / (l_max(n) - l_after(n-1)): the share of what was forgotten
    that has come back right before the document does (paper, section 3). Losses in nats. Any
    schedule will do.

    Returns (waits, documents) scores, NaN where left out, and the reason for each, one of
    `COUNTED`, `NOT_REACHED`, `NEVER_ROSE`, `TOO_LITTLE`, and `NO_TURN` where a document comes less
    often than others.
    """
    each = turns(schedule, losses.shape[1])
    waits = max(0, max(map(len, each)) - 1)
    scores = np.full((waits, len(each)), np.nan)
    reasons = np.full(scores.shape, NO_TURN)
    for document, episodes in enumerate(each):
        for n, (this, following) in enumerate(itertools.pairwise(episodes)):
            between = losses[this + 1 : following + 1, document]
            if len(between) == following - this and np.isfinite(between).all():
                scores[n, document], reasons[n, document] = _score(between, min_forgetting)
            else:
                reasons[n, document] = NOT_REACHED
    return scores, reasons


def _score(between: Floats, min_forgetting: float) -> tuple[float, int]:
    """The score of one stretch of loss, from right after an episode to right before the next."""
    after, top, before = between[0], between.max(), between[-1]
    if top <= after:
        return np.nan, NEVER_ROSE
    if top - after < min_forgetting:
        return np.nan, TOO_LITTLE
    return float((top - before) / (top - after)), COUNTED


def shift_aligned(losses: Floats, schedule: Schedule) -> Floats:
    """Each document's curve of a periodic run, moved so that row 0 is right before its first
    episode: ((E-1)·T + 2, T), the rows for which every document has a value (paper, A.4)."""
    documents = losses.shape[1]
    first = visits(schedule, documents)[:, 0]
    rows = np.arange(len(losses) - documents + 1)
    return losses[rows[:, None] + first, np.arange(documents)]


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


def online_loss(train_loss: Floats, steps: int, schedule: Schedule) -> Floats:
    """(epochs, documents): the loss of each document as it was about to be trained on, the first
    training loss of its episode (prequential loss; paper, section 3). NaN where not reached.
    `ValueError` unless every document comes equally often."""
    first = rearrange(train_loss, "(episode step) -> episode step", step=steps)[:, 0]
    return first[visits(schedule, int(schedule.max()) + 1)].T


def token_waits(losses: NDArray[np.floating], schedule: Schedule) -> tuple[Floats, Floats, int]:
    """Of token losses (row, document, position): forgotten, at the document's top less right after
    an episode on it, and regained, at the top less right before the next; (document, wait,
    position) both. The top is the largest of its mean losses in the wait. NaN where a wait does not
    end within the rows, or the mean only fell: the third value is how many waits only fell.
    """
    _, documents, positions = losses.shape
    each = turns(schedule, documents)
    forgotten = np.full((documents, max(0, max(map(len, each)) - 1), positions), np.nan)
    regained, only_fell = forgotten.copy(), 0
    for document, episodes in enumerate(each):
        for n, (this, following) in enumerate(itertools.pairwise(episodes)):
            if following >= len(losses):
                break
            wait = losses[this + 1 : following + 1, document].astype("float64")
            top = int(mean_of_counted(wait).argmax())
            only_fell += top == 0
            if top > 0:
                forgotten[document, n] = wait[top] - wait[0]
                regained[document, n] = wait[top] - wait[-1]
    return forgotten, regained, only_fell


def between_waits(forgotten: Floats, regained: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of (document, wait, position) nats, (document,) each: regained at the tenth of its tokens
    that regained most in the other waits; at all of its tokens; at as many, were all alike; and
    the mean correlation of regained with the forgotten of the other waits. A wait's noise is on one
    side alone. 0, 0, 0 and NaN of documents without two waits."""
    documents, waits, _ = regained.shape
    tenth, whole, even = np.zeros((3, documents))
    r = np.full((documents, waits), np.nan)
    for document, n in np.ndindex(documents, waits):
        others = np.arange(waits) != n
        most = mean_of_counted(regained[document, others], axis=0)
        before = mean_of_counted(forgotten[document, others], axis=0)
        here = regained[document, n]
        counted = np.isfinite(here) & np.isfinite(most)
        if counted.sum() < 3:
            continue
        here, most, before = here[counted], most[counted], before[counted]
        first = np.argsort(-most, kind="stable")[: max(1, round(len(here) / 10))]
        tenth[document] += here[first].sum()
        whole[document] += here.sum()
        even[document] += here.sum() * len(first) / len(here)
        if here.std() > 0 and before.std() > 0:
            r[document, n] = np.corrcoef(before, here)[0, 1]
    return tenth, whole, even, mean_of_counted(r)


def sums_by_word(values: Floats, word: Ints, words: int) -> Floats:
    """(words,): nats of (document, wait, position), mean over waits, summed over all places of a
    word, whose index is `word` (document, position)."""
    each = np.nan_to_num(mean_of_counted(values, axis=1))
    sums = np.bincount(word.ravel(), weights=each.ravel(), minlength=words)
    return sums.astype("float64")
