"""The report of a run, written while it trains."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE
from recovery_probe.recorders import Episode, Layout, Recorder

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class LiveReport(Recorder):
    """RUN/report.html, with the picture and the explorer as far as they go, and those of the run
    when its control is trained; it says so, and loads itself again. It is a file, opened as any
    other: nobody serves it. Nothing in the record."""

    name = "live_report"

    # episode, N episodes or epoch
    every: str = "epoch"

    def start(self, training: Training) -> Layout:
        self.path = training.path or Path()
        return Layout(every={EPISODE: self.every})

    def committed(self, episode: Episode) -> None:
        from recovery_probe.analyze import live

        try:
            live.write(self.path)
        except (InputError, OSError) as error:  # it is not what is trained for
            print(f"note: {self.path}: no report yet: {error}", file=sys.stderr)
