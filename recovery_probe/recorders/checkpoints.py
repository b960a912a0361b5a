"""The weights, at the start and every so often, as folders that transformers can load."""

from __future__ import annotations

import os
import shutil

from recovery_probe.recorders import EPISODE, Episode, Layout, Recorder, Rows, RunInfo, times
from recovery_probe.run import checkpoint_folder, checkpoints


class Checkpoints(Recorder):
    """`RUN/checkpoints/episodes-00020` after 20 episodes: written aside, renamed when whole."""

    name = "checkpoints"

    def start(self, run: RunInfo) -> Layout:
        wanted = run.settings.checkpoints
        self.path, self.keep = run.path, wanted.keep
        self.last = len(run.schedule)
        count = len(times(wanted.every, run.settings, EPISODE))
        size = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
        kept = min(wanted.keep or count, count)
        return Layout(every={EPISODE: wanted.every}, files=kept * size)

    def after_episode(self, episode: Episode) -> Rows:
        folder = checkpoint_folder(self.path, episode.done)
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        episode.model.save(aside)
        os.replace(aside, folder)
        for old in checkpoints(self.path)[: -self.keep] if self.keep else []:
            shutil.rmtree(checkpoint_folder(self.path, old))
        return None
