"""A sketch of the weight update actually applied, and its exact norm, by module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recovery_probe.recorders import STEP, Layout, Recorder, Rows, RunInfo, Step, times
from recovery_probe.recorders.gradients import module_layout


class WeightDeltas(Recorder):
    """`sketched` (step, module, sketch) and `norm` (step, module) of weights after minus weights
    before, from step `step` up to the next recorded one. The running sum of the sketches is the
    sketch of the trajectory (`Run.weight_trajectory`).

    One step of plain descent moves a weight by -lr times its gradient, which is at hand. Any
    other update is the difference of the weights, of which a copy is kept.
    """

    name = "weight_deltas"
    sees_every_step = True

    def start(self, run: RunInfo) -> Layout:
        every, optimizer = run.settings.weight_deltas.every, run.settings.optimizer
        self.parameters, self.sketches, self.lr = run.model.parameters, run.sketches, optimizer.lr
        first = times(every, run.settings, STEP)
        total = len(run.schedule) * run.settings.steps
        self.first, self.last = set(first.tolist()), {*(first[1:] - 1).tolist(), total - 1}
        self.from_gradient = (
            optimizer.name == "sgd"
            and not (optimizer.momentum or optimizer.weight_decay)
            and np.array_equal(first, np.arange(total))
        )
        self.before: list[Tensor] = []
        return module_layout(self.sketches, "weight update applied", "weight", every)

    def rehearse(self) -> None:
        if not self.from_gradient:
            weights = [p.detach() for p in self.parameters.values()]
            self.sketches(
                dict(zip(self.parameters, torch._foreach_sub(weights, weights), strict=True))
            )

    def before_step(self, step: Step) -> Rows:
        if step.index in self.first and not self.from_gradient:
            weights = [p.detach() for p in self.parameters.values()]
            self.before = self.before or [torch.empty_like(w) for w in weights]
            torch._foreach_copy_(self.before, weights)
        return None

    def after_step(self, step: Step) -> Rows:
        if step.index not in self.last:
            return None
        if self.from_gradient:
            sketch, norm = self.sketches.of_gradients(step.index, self.parameters)
            return {"sketched": -self.lr * sketch, "norm": self.lr * norm}
        weights = [p.detach() for p in self.parameters.values()]
        deltas = dict(zip(self.parameters, torch._foreach_sub(weights, self.before), strict=True))
        sketch, norm = self.sketches(deltas)
        return {"sketched": sketch, "norm": norm}
