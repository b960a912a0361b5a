"""The loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recovery_probe.interventions.acting import Interventions
from recovery_probe.record.sink import Sink
from recovery_probe.recorders.recording import Recording
from recovery_probe.train.guards import check_below_untrained, check_finite
from recovery_probe.train.progress import Progress
from recovery_probe.training import Training


def train(
    training: Training,
    interventions: Interventions,
    recording: Recording,
    writer: Sink,
    progress: Progress,
    stop: int | None = None,
) -> bool:
    """M gradient steps on each scheduled document, then the loss of all documents. Begins where
    `training` is. At each moment interventions act first, and recorders watch what is then.
    Ends before episode `stop`, or with the schedule. Returns whether it came there: asked to stop,
    it does after an episode."""
    model, stop = training.model, training.timeline.episodes if stop is None else stop
    if not training.done:
        conclude(training, interventions, recording, writer)
    for episode in range(training.done, stop):
        losses = []
        for step in training.steps(episode):
            interventions.before_step(step)
            recording.before_step(step)
            training.optimizer.zero_grad()
            with training.passes(step):
                (loss,) = model.losses(interventions.wanted(step), interventions.shown(step))
                loss.backward()
            interventions.gradients(step)
            recording.after_backward(step)
            training.optimizer.step()
            interventions.weights(step)
            recording.after_step(step)
            losses.append(loss.detach())
        training.done = episode + 1
        stopping = training.stopping  # before its checkpoint
        conclude(training, interventions, recording, writer, torch.stack(losses).tolist())
        progress.tell(training)
        if stopping and training.done < stop:
            return False
    recording.conclude()
    return True


def conclude(
    training: Training,
    interventions: Interventions,
    recording: Recording,
    writer: Sink,
    train_loss: Sequence[float] = (),
) -> None:
    """What follows an episode, and comes before the first: evaluate, look whether the numbers mean
    anything, write, and count what is written."""
    done = training.done
    training.rows[done] = training.evaluate(recording.evaluated)
    check_finite(done - 1, train_loss, training.rows[done])
    recording.after_episode(done)
    recording.commit(writer)
    writer.commit(done, training.rows[done], train_loss)
    recording.committed()
    if not interventions.relabelling:  # then losses may rise for good reason
        check_below_untrained(done, training.rows, training.timeline, training.untrained)
