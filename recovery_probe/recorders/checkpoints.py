"""The weights, at the start and every so often, as folders that transformers can load."""

from __future__ import annotations

import os
import shutil

from recovery_probe.recorders import EPISODE, Episode, Layout, Recorder, Rows, RunInfo, times
from recovery_probe.run import checkpoint_folder, checkpoints


class Checkpoints(Recorder):
    """`RUN/checkpoints/episodes-00020` after 20 episodes: written aside, renamed when whole. The
    weights at the end of the run are always kept."""

    name = "checkpoints"

    def start(self, run: RunInfo) -> Layout:
        wanted = run.settings.checkpoints
        self.path, self.keep = run.path, wanted.keep
        self.due = {*times(wanted.every, run.settings, EPISODE).tolist(), len(run.schedule)}
        count = len(self.due)
        # The oldest goes once the latest is whole.
        most = min(wanted.keep + 1, count) if wanted.keep else count
        return Layout(files=most * run.model.nbytes)

    def after_episode(self, episode: Episode) -> Rows:
        if episode.done not in self.due:
            return None
        folder = checkpoint_folder(self.path, episode.done)
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        episode.model.save(aside)
        os.replace(aside, folder)
        for old in checkpoints(self.path)[: -self.keep] if self.keep else []:
            shutil.rmtree(checkpoint_folder(self.path, old))
        return None
