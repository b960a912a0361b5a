"""Where the numbers of a run stop meaning anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recovery_probe.errors import Diverged
from recovery_probe.record.layout import Timeline

MEND = "try a smaller learning rate (optimizer.lr)"


def check_finite(episode: int, train_loss: Sequence[float], row: NDArray[np.float64]) -> None:
    """Raise `Diverged` when a loss of this episode is not a number; -1 is before any training."""
    for step, loss in enumerate(train_loss):
        if not np.isfinite(loss):
            raise Diverged(
                f"episode {episode}: the training loss was {loss} at its step {step}; {MEND}"
            )
    if not np.isfinite(row).all():
        count = int((~np.isfinite(row)).sum())
        raise Diverged(
            f"episode {episode}: {count} documents had a loss that is not finite after it; {MEND}"
            if episode >= 0
            else f"before any training, {count} documents have a loss that is not finite"
        )


def check_below_untrained(
    done: int,
    rows: NDArray[np.float64],
    timeline: Timeline,
    before: NDArray[np.float64] | None = None,
) -> None:
    """Raise `Diverged` when the mean loss of the documents of a whole epoch stayed above its
    untrained value as long as that. `rows`: (episodes + 1, T + H), of which `done` + 1 count.
    Documents that were not trained on then may fare as they like. `before`: (T + H,) untrained
    losses where they are not the first row; NaN of documents that have none."""
    length = timeline.per_epoch
    if done < length:
        return
    these = np.unique(timeline.schedule[done - length : done])
    before = rows[0] if before is None else before
    these = these[np.isfinite(before[these])]
    if not len(these):
        return
    untrained = before[these].mean()
    means = rows[done - length + 1 : done + 1, these].mean(axis=1)
    if (means > untrained).all():
        raise Diverged(
            f"episode {done - 1}: the mean loss has been above its untrained {untrained:.3f} for a "
            f"whole epoch, and is now {means[-1]:.3f}; {MEND}"
        )
