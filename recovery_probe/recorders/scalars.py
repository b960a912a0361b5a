"""What a run's curves are, by the names that dashboards group them by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recovery_probe import stats

if TYPE_CHECKING:
    from recovery_probe.training import Training

RECENT = 3  # epochs that recovery so far is of: all of a long run would take longer and longer


def scalars(training: Training) -> dict[str, float]:
    """After an episode: `loss/trained`, `loss/held_out`, `loss/document_003`, … (nats per token);
    `loss/on_arrival`, of the document right before the episode; `recovery`, so far. Those that are
    not there yet are left out."""
    done, T = training.done, training.timeline.documents
    row = training.rows[done]
    found = {
        "loss/trained": row[:T].mean(),
        "loss/held_out": row[T:].mean() if row[T:].size else np.nan,
    }
    found |= {f"loss/document_{k:03d}": loss for k, loss in enumerate(row)}
    if done:
        document = training.timeline.schedule[done - 1]
        found["loss/on_arrival"] = training.rows[done - 1, document]
        found["recovery"] = recovery(training)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def recovery(training: Training) -> float:
    """How much of what is forgotten has come back in the latest waits, of their mean by age."""
    done, T = training.done, training.timeline.documents
    start = max(0, done - RECENT * training.timeline.per_epoch)
    schedule = training.timeline.schedule[start:done]
    return stats.recovery_so_far(training.rows[start : done + 1, :T], schedule)
