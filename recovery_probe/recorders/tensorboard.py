"""The run's curves as TensorBoard reads them, while it trains."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE
from recovery_probe.recorders import Episode, Layout, Recorder
from recovery_probe.recorders.scalars import scalars

if TYPE_CHECKING:
    from recovery_probe.training import Training

MEND = 'pip install -c constraints.txt ".[tensorboard]"'


@dataclass
class TensorBoard(Recorder):
    """Event files in RUN/tensorboard: `tensorboard --logdir runs`. Losses of each document, of all
    that are trained on and of held-out ones, on arrival, and recovery so far, at episodes done. A
    run that goes on takes the place of what it does again. Nothing in the record."""

    name = "tensorboard"

    # episode, N episodes or epoch
    every: str = "episode"

    def start(self, training: Training) -> Layout:
        if not importlib.util.find_spec("tensorboard"):
            raise InputError(f"recorder tensorboard needs the package tensorboard: {MEND}")
        self.training = training
        self.writer: Any = None
        return Layout(every={EPISODE: self.every})

    def committed(self, episode: Episode) -> None:
        if self.writer is None:
            self.writer = self._open(episode.done)
        for name, value in scalars(self.training).items():
            self.writer.add_scalar(name, value, episode.done)
        self.writer.flush()

    def _open(self, done: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = (self.training.path or Path()) / "tensorboard"
        return SummaryWriter(str(folder), purge_step=done or None)

    def finish(self) -> dict[str, Any]:
        if self.writer is not None:
            self.writer.close()
        return {}
