"""All that a run needs to go on from there, at the start and every so often; the weights among it
as folders that transformers can load."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from recovery_probe.optimizers import plain_rate
from recovery_probe.record import store
from recovery_probe.record.folder import checkpoint_folder, checkpoints
from recovery_probe.record.layout import EPISODE
from recovery_probe.recorders import Episode, Layout, Recorder

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class Checkpoints(Recorder):
    """`RUN/checkpoints/episodes-00020` after 20 episodes: written aside, renamed when whole, the
    record so far flushed to the disk before. The one at the end of the run is always kept, and one
    that a stopped run leaves until the next is there."""

    name = "checkpoints"

    # episode, N episodes or epoch; the untrained weights are always the first
    every: str = "epoch"
    # how many of the latest to keep; 0 for all
    keep: Annotated[int, Ge(0)] = 0

    def start(self, training: Training) -> Layout:
        self.training, timeline, self.path = training, training.timeline, training.path or Path()
        self.due = {*timeline.due(self.every, EPISODE).tolist(), timeline.episodes}
        self.flushed = 0.0  # when, seconds since 1970
        count = len(self.due)
        # The oldest goes once the latest is whole.
        most = min(self.keep + 1, count) if self.keep else count
        remembered = 1 if plain_rate(training.optimizer) is not None else 3  # as Adam does
        return Layout(files=most * remembered * training.model.nbytes)

    def committed(self, episode: Episode) -> None:
        if episode.done not in self.due and not self.training.stopping:
            return
        now = time.time()
        store.flush_since(self.path / "record.zarr", self.flushed)
        self.flushed = now
        self.training.save()
        self._remove_old()

    def finish(self) -> dict[str, Any]:
        self._remove_old()  # what was left by a process that was killed before it came to that
        return {}

    def _remove_old(self) -> None:
        """Keep the latest, as many as are asked for; one that a stopped run left is no more needed
        once another follows. Later ones than this are of a run that goes on from before."""
        there = [done for done in checkpoints(self.path) if done <= self.training.done]
        passing = {done for done in there[:-1] if done not in self.due}
        old = set(there[: -self.keep]) if self.keep else set()
        for done in passing | old:
            shutil.rmtree(checkpoint_folder(self.path, done))
