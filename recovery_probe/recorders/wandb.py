"""The run's curves as Weights & Biases has them, while it trains."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE
from recovery_probe.recorders import Episode, Layout, Recorder
from recovery_probe.recorders.scalars import scalars

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class WandB(Recorder):
    """A run of Weights & Biases in RUN/wandb, with the settings: offline, for `wandb sync`, unless
    `mode` is online. Losses of each document, of all that are trained on and of held-out ones, on
    arrival, and recovery so far, at episodes done. A run that goes on is the same one there, where
    the service takes no episode twice. Nothing in the record."""

    name = "wandb"

    # the project that it is listed under
    project: str = "recovery_probe"
    # offline: files alone; online: sent while it trains, which wants `wandb login`
    mode: Literal["offline", "online"] = "offline"
    # episode, N episodes or epoch
    every: str = "episode"

    def start(self, training: Training) -> Layout:
        if not importlib.util.find_spec("wandb"):
            mend = 'pip install -c constraints.txt ".[wandb]"'
            raise InputError(f"recorder wandb needs the package wandb: {mend}")
        self.training = training
        self.run: Any = None
        return Layout(every={EPISODE: self.every})

    def committed(self, episode: Episode) -> None:
        if self.run is None:
            self.run = self._open()
        self.run.log(scalars(self.training), step=episode.done)

    def _open(self) -> Any:
        import wandb

        from recovery_probe import config

        path = (self.training.path or Path()).resolve()
        began = json.loads((path / "provenance.json").read_text("utf-8"))["started"]
        return wandb.init(
            project=self.project,
            mode=self.mode,
            dir=str(path),
            name="/".join(path.parts[-2:]),
            id=hashlib.sha256(f"{path} {began}".encode()).hexdigest()[:12],
            resume="allow",
            config=config.flat(self.training.settings),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def finish(self) -> dict[str, Any]:
        if self.run is not None:
            self.run.finish()
        return {}
