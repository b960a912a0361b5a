"""How far a run is: a bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

import numpy as np

QUIET = 60  # seconds after which a plain line comes in mid-epoch too


class Progress:
    """Shows documents done, loss, recovery so far and time left, on standard error."""

    def __init__(self, label: str, episodes: int, per_epoch: int) -> None:
        self.label, self.episodes, self.per_epoch = label, episodes, per_epoch
        self.started = self.told = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.episodes, desc=self.label, unit="document")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def due(self, done: int) -> bool:
        """Whether `tell` is to be called after `done` episodes; moves the bar on."""
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        late = self.bar is None and time.monotonic() - self.told > QUIET
        return done % self.per_epoch == 0 or late

    def tell(self, done: int, loss: float, recovery: float) -> None:
        """After `done` episodes: mean loss of the trained documents (nats), recovery so far."""
        score = "none yet" if np.isnan(recovery) else f"{recovery:.2f}"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, recovery {score}")
            return
        self.told = time.monotonic()
        left = (self.told - self.started) / done * (self.episodes - done)
        within = f" and {done % self.per_epoch} documents" if done % self.per_epoch else ""
        print(
            f"{self.label}: epoch {done // self.per_epoch}{within} of "
            f"{self.episodes // self.per_epoch}, loss {loss:.3f}, recovery {score}, "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
