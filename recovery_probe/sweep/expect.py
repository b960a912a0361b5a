"""What a sweep will take, said before it begins."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recovery_probe.record.sink import Unwritten
from recovery_probe.schedules import planned
from recovery_probe.settings import Settings
from recovery_probe.sweep.spec import Job

EPISODES = 2  # the first warms up, and the last is measured


def work(settings: Settings) -> float:
    """Multiplications of an episode, up to a factor that is the same for all points: those of M
    steps forward and backward, and of all documents forward."""
    model, documents = settings.model, settings.documents
    weights = 12 * model.width**2 * model.depth + model.vocabulary * model.width
    passes = 3 * settings.steps + documents.count + documents.held_out
    return float(weights if model.source == "random" else 1) * documents.tokens * passes


def seconds_and_bytes(jobs: Sequence[Job]) -> tuple[float, float]:
    """Of all these runs, one after the other: from an episode of the smallest and of the largest,
    and between them in proportion to `work`."""
    ordered = sorted(jobs, key=lambda job: work(job.point.settings))
    ends = [ordered[0], ordered[-1]]
    at = [work(job.point.settings) for job in ends]
    _measured(ends[0].point.settings)  # imports libraries
    measured = np.array([_measured(job.point.settings) for job in ends])  # (end, quantity)
    seconds = size = 0.0
    for job in jobs:
        begin, each, room = (
            float(np.interp(work(job.point.settings), at, measured[:, q])) for q in range(3)
        )
        seconds += begin + each * planned(job.point.settings).episodes
        size += room
    return seconds, size


def _measured(settings: Settings) -> tuple[float, float, float]:
    """Seconds until training begins and of an episode; bytes of the record and checkpoints."""
    from recovery_probe.interventions import acting
    from recovery_probe.interventions.acting import Interventions
    from recovery_probe.machine import reproducible, threads
    from recovery_probe.recorders import recording as recorders
    from recovery_probe.recorders.recording import Recording
    from recovery_probe.train.loop import train
    from recovery_probe.train.progress import Progress
    from recovery_probe.training import Training

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
        threads(settings.threads),
    ):
        start = time.monotonic()
        training = Training.open(settings, Path(folder))
        with reproducible(training.model.device):
            interventions = Interventions(acting.find(settings), training)
            recording = Recording(recorders.find(settings), training, interventions)
            size = sum(n for arrays in recording.sizes().values() for _, n in arrays.values())
            began, times = time.monotonic(), []
            with interventions.attached(), recording.attached():
                for stop in range(1, EPISODES + 1):
                    progress = Progress("", training.timeline, stop=stop)
                    times.append(time.monotonic())
                    train(training, interventions, recording, Unwritten(), progress, stop)
    return began - start, time.monotonic() - times[-1], float(size)
