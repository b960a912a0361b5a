"""How far a run is: a bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

import numpy as np

from recovery_probe import stats
from recovery_probe.record.layout import Timeline
from recovery_probe.training import Training

QUIET = 60  # seconds after which a plain line comes in mid-epoch too
RECENT = 3  # epochs that recovery so far is of: all of a long run would take longer and longer


class Progress:
    """Shows documents done, loss, recovery so far and time left, on standard error."""

    def __init__(
        self, label: str, timeline: Timeline, done: int = 0, stop: int | None = None
    ) -> None:
        self.label, self.timeline = label, timeline
        self.episodes = timeline.episodes if stop is None else stop
        self.started = self.spoke = time.monotonic()
        self.done_before = done
        self.bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.episodes, initial=self.done_before, desc=self.label, unit="document"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, training: Training) -> None:
        """After an episode: mean loss of the trained documents (nats) and their latest recovery,
        once an epoch, and on a plain terminal when nothing was said for a while."""
        done, T = training.done, self.timeline.documents
        epoch, within = self.timeline.place(done)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        late = self.bar is None and time.monotonic() - self.spoke > QUIET
        if within and not late and done < self.episodes:
            return
        loss = float(training.rows[done, :T].mean())
        start = max(0, done - RECENT * self.timeline.per_epoch)
        schedule = training.timeline.schedule[start:done]
        recovery = stats.recovery_so_far(training.rows[start : done + 1, :T], schedule)
        score = "none yet" if np.isnan(recovery) else f"{recovery:.2f}"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, recovery {score}")
            return
        self.spoke = time.monotonic()
        left = (self.spoke - self.started) / (done - self.done_before) * (self.episodes - done)
        epochs = self.timeline.place(self.episodes - 1)[0] + 1
        more = f" and {within} documents" if within else ""
        print(
            f"{self.label}: epoch {epoch}{more} of {epochs}, "
            f"loss {loss:.3f}, recovery {score}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
