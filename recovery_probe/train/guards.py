"""Where the numbers of a run stop meaning anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recovery_probe.errors import Diverged

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


def check_below_untrained(episode: int, rows: NDArray[np.float64], documents: int) -> None:
    """Raise `Diverged` when the mean loss of the trained documents stayed above its untrained
    value for a whole epoch. `rows`: (episodes done + 1, T + H)."""
    T = documents
    if len(rows) <= T:
        return
    untrained, means = rows[0, :T].mean(), rows[-T:, :T].mean(axis=1)
    if (means > untrained).all():
        raise Diverged(
            f"episode {episode}: the mean loss has been above its untrained {untrained:.3f} for a "
            f"whole epoch, and is now {means[-1]:.3f}; {MEND}"
        )
