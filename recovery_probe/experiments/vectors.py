"""Vectors in the space of a run's weights: gradients at a checkpoint, updates after one. In float32
at least, off the device: there are as many as documents, each of the size of the network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recovery_probe.machine import threads
from recovery_probe.record.run import Run
from recovery_probe.recorders import Episode, Layout, Recorder
from recovery_probe.train.plan import Point, check_plan
from recovery_probe.train.replay import Compared, again
from recovery_probe.training import Training


def gradients(
    run: Run, episodes_done: int, documents: range, names: Collection[str]
) -> dict[str, Tensor]:
    """Parameter, those of `names` -> (documents, *its shape): exact gradients of the mean loss of
    each document, nats, in eval mode, at a checkpoint: a backward pass each."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with threads(run.config.threads):
        training = Training.at(run, episodes_done)
        training.model.train(False)
        chosen = [training.model.parameters[name] for name in names]
        for k in documents:
            loss = training.losses(slice(k, k + 1)).sum()
            each = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
            for name, gradient in zip(names, each, strict=True):
                found[name].append(_kept(gradient))
    return {name: torch.stack(found.pop(name)) for name in names}


def updates(point: Point, episodes: int) -> dict[str, Tensor]:
    """Parameter, those that move at all -> (episodes, *its shape): what each of the first episodes
    of an arm does to the weights. They are trained, and not written."""
    check_plan([point])
    assert point.begins is not None
    origin = point.begins.run
    moved = _Moved()
    with threads(point.settings.threads):
        run = Run(origin)
        training = Training.begun(point.settings, run, point.begins.episodes_done)
        again(training, (), [moved], _Nowhere(run), episodes)
    return {  # each parameter let go once it is stacked: all are not there twice
        name: stacked
        for name in moved.before
        if (stacked := torch.stack([each.pop(name) for each in moved.each])).any()
    }


class _Moved(Recorder):
    """Keeps the updates of episodes."""

    name = "moved"

    def start(self, training: Training) -> Layout:
        self.each: list[dict[str, Tensor]] = []
        self.before = _weights(training.model.parameters)
        return Layout()

    def after_episode(self, episode: Episode) -> None:
        if episode.done:
            now = _weights(episode.model.parameters)
            self.each.append({name: now[name] - self.before[name] for name in now})
            self.before = now


class _Nowhere(Compared):
    """What the loop writes to when nothing is to be written."""

    def commit(self, row: int, losses: ArrayLike, train_loss: Sequence[float] = ()) -> None:
        """Nothing."""


def _weights(parameters: Any) -> dict[str, Tensor]:
    return {name: _kept(p.detach()) for name, p in parameters.items()}


def _kept(tensor: Tensor) -> Tensor:
    """A copy, off the device, in float32 at least."""
    return tensor.to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True)
