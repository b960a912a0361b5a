"""How far a run is: a bar on a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from recovery_probe.record.layout import Timeline
from recovery_probe.recorders.scalars import recovery
from recovery_probe.saying import bar, on_terminal, say
from recovery_probe.training import Training

QUIET = 60  # seconds after which a plain line comes in mid-epoch too


class Progress:
    """Shows documents done, loss, recovery so far and time left, on standard error."""

    def __init__(
        self, label: str, timeline: Timeline, done: int = 0, stop: int | None = None
    ) -> None:
        self.label, self.timeline = label, timeline
        self.episodes = timeline.episodes if stop is None else stop
        self.started = self.spoke = time.monotonic()
        self.done_before = done
        self.shown = ExitStack()
        self.step: Callable[..., None] = lambda *_, **__: None  # of the bar, while one is shown

    def __enter__(self) -> Self:
        whole = bar(self.label, self.episodes, "documents", self.done_before, stays=True)
        self.step = self.shown.enter_context(whole)
        return self

    def __exit__(self, *error: Any) -> None:
        self.shown.__exit__(*error)

    def tell(self, training: Training) -> None:
        """After an episode: mean loss of the trained documents (nats), and how much of what is
        forgotten has come back in the latest waits, of their mean by age; once an epoch, and
        in a plain line when nothing was said for a while."""
        done, T = training.done, self.timeline.documents
        epoch, within = self.timeline.place(done)
        self.step()
        late = not on_terminal() and time.monotonic() - self.spoke > QUIET
        if within and not late and done < self.episodes:
            return
        loss = float(training.rows[done, :T].mean())
        said = f"loss {loss:.3f}, recovery {_none_yet(recovery(training))}"
        self.step(0, said=said)
        if on_terminal():
            return
        self.spoke = time.monotonic()
        left = (self.spoke - self.started) / (done - self.done_before) * (self.episodes - done)
        epochs = self.timeline.place(self.episodes - 1)[0] + 1
        more = f" and {within} documents" if within else ""
        say(f"{self.label}: epoch {epoch} of {epochs}{more}, {said}, {left:.0f} s left")


def _none_yet(score: float) -> str:
    return "none yet" if np.isnan(score) else f"{score:.2f}"
