"""The weights, at the start and every so often, as folders that transformers can load."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from recovery_probe.record.folder import checkpoint_folder, checkpoints
from recovery_probe.record.layout import EPISODE
from recovery_probe.recorders import Episode, Layout, Recorder, Rows

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class Checkpoints(Recorder):
    """`RUN/checkpoints/episodes-00020` after 20 episodes: written aside, renamed when whole. The
    weights at the end of the run are always kept."""

    name = "checkpoints"

    # episode, N episodes or epoch; the untrained weights are always the first
    every: str = "epoch"
    # how many of the latest to keep; 0 for all
    keep: Annotated[int, Ge(0)] = 0

    def start(self, training: Training) -> Layout:
        timeline, self.path = training.timeline, training.path or Path()
        self.due = {*timeline.due(self.every, EPISODE).tolist(), timeline.episodes}
        count = len(self.due)
        # The oldest goes once the latest is whole.
        most = min(self.keep + 1, count) if self.keep else count
        return Layout(files=most * training.model.nbytes)

    def after_episode(self, episode: Episode) -> Rows:
        if episode.done not in self.due:
            return None
        folder = checkpoint_folder(self.path, episode.done)
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        episode.model.save(aside)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that begins again
        os.replace(aside, folder)
        for old in checkpoints(self.path)[: -self.keep] if self.keep else []:
            shutil.rmtree(checkpoint_folder(self.path, old))
        return None
