"""A sketch of the weight update actually applied, and its exact norm, by module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recovery_probe.errors import HookError
from recovery_probe.optimizers import plain_rate
from recovery_probe.record.layout import STEP
from recovery_probe.recorders import Layout, Recorder, Rows, Step
from recovery_probe.recorders.gradients import module_layout

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

ROUNDED = 100  # roundings that a sketch of all weights may be off by, beside one for each step


@dataclass
class WeightDeltas(Recorder):
    """`sketched` (step, module, sketch) and `norm` (step, module) of weights after minus weights
    before, from step `step` up to the next recorded one. The running sum of the sketches is the
    sketch of the trajectory (`Run.weight_trajectory`).

    One step of plain descent moves a weight by -lr times its gradient, which is at hand: but for
    rounding, so that this holds in float32 and float64 alone. Once an epoch the weights themselves
    must have moved by the sum of what was recorded. Any other update is the difference of the
    weights, of which a copy is kept.
    """

    name = "weight_deltas"
    sees_every_step = True

    # step, N steps, episode or epoch: the update over each such stretch
    every: str = "step"

    def start(self, training: Training) -> Layout:
        self.training, timeline = training, training.timeline
        self.parameters, self.sketches = training.model.parameters, training.sketches
        ends = timeline.boundaries * timeline.steps  # of epochs
        self.epochs, self.longest = set(ends.tolist()), int(np.diff(ends, prepend=0).max())
        first = timeline.due(self.every, STEP)
        self.cut_short = timeline.total not in timeline.periods(self.every, STEP)
        self.first, self.last = set(first.tolist()), {*(first[1:] - 1).tolist(), timeline.total - 1}
        self.from_gradient = (
            plain_rate(training.optimizer) is not None
            and not training.settings.interventions  # which may do anything to weights
            and training.settings.model.dtype in ("float32", "float64")
            and np.array_equal(first, np.arange(timeline.total))
        )
        self.before: dict[str, Tensor] = {}  # the weights at the start of a stretch
        self.begun = False  # it
        self.start_sketch: Tensor | None = None
        what = "weight update applied"
        return module_layout(self.sketches, what, "weight", self.every, covers="stretch")

    def rehearse(self) -> None:
        if not self.from_gradient:
            self.sketches((name, p.detach() - p.detach()) for name, p in self.parameters.items())

    def before_step(self, step: Step) -> Rows:
        import torch

        if self.from_gradient:
            if self.start_sketch is None:
                self.start_sketch, _ = self.sketches(self.parameters)
                self.moved = torch.zeros_like(self.start_sketch, dtype=torch.float64)
        elif step.index in self.first:
            weights = {name: p.detach() for name, p in self.parameters.items()}
            self.before = self.before or {n: torch.empty_like(w) for n, w in weights.items()}
            for name, weight in weights.items():
                self.before[name].copy_(weight)
            self.begun = True
        return None

    def after_step(self, step: Step) -> Rows:
        if self.from_gradient:
            sketch, norm = self.sketches.of_gradients(step.index, self.parameters)
            rate = plain_rate(self.training.optimizer) or 0.0
            self.moved -= rate * sketch
            if step.index + 1 in self.epochs:
                self._compare(step.index)
            return {"sketched": -rate * sketch, "norm": rate * norm}
        if step.index not in self.last or not self.begun:
            return None
        # The last one of a run goes on where more epochs are asked for.
        self.begun = self.cut_short and step.index + 1 == self.training.timeline.total
        sketch, norm = self.sketches(self._differences())
        return {"sketched": sketch, "norm": norm}

    def state(self) -> dict[str, Any]:
        return {"before": self.before} if self.begun else {}

    def restore(self, state: dict[str, Any]) -> None:
        device = self.training.model.device
        self.before = {name: weight.to(device) for name, weight in state.get("before", {}).items()}
        self.begun = bool(self.before)

    def _differences(self) -> Iterator[tuple[str, Tensor]]:
        """One at a time; in float32 at least, since bfloat16 would round them again."""
        import torch

        for name, parameter in self.parameters.items():
            now, before = parameter.detach(), self.before[name]
            dtype = torch.promote_types(now.dtype, torch.float32)
            yield name, now.to(dtype) - before.to(dtype)

    def _compare(self, step: int) -> None:
        """Raise `HookError` when the weights have not moved, since the start of this epoch, by
        what was recorded, but for a rounding of every weight at every step. Sketches are linear:
        no copy of the weights is needed."""
        import torch

        assert self.start_sketch is not None
        now, size = self.sketches(self.parameters)
        moved = (now - self.start_sketch).double()
        off = (moved - self.moved).norm(dim=1)
        rounding = torch.finfo(now.dtype).eps * (self.longest + ROUNDED) * size.double()
        if (off > rounding).any():
            worst = int((off - rounding).argmax())
            raise HookError(
                f"weight_deltas: in the epoch up to step {step} the weights of "
                f"{self.sketches.modules[worst]} moved by about {float(moved[worst].norm()):.3g}, "
                f"and by {float(self.moved[worst].norm()):.3g} by their gradients: something "
                "changed gradients or weights between the recorders and the optimizer"
            )
        self.start_sketch = now
        self.moved.zero_()
