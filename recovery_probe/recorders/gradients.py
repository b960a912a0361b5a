"""A sketch of the training document's gradient at every step, and its exact norm, by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from recovery_probe.record.layout import STEP, Array, module_coords
from recovery_probe.recorders import Layout, Recorder, Rows, Step

if TYPE_CHECKING:
    from recovery_probe.sketch import ModuleSketches
    from recovery_probe.training import Training


@dataclass
class Gradients(Recorder):
    """`sketched` (step, module, sketch) and `norm` (step, module) of the gradient of the training
    document's loss (nats), before the step it causes."""

    name = "gradients"

    # step, N steps, episode (its first step) or epoch
    every: str = "step"

    def start(self, training: Training) -> Layout:
        from recovery_probe.recorders.sketch_check import SketchCheck

        self.parameters, self.sketches = training.model.parameters, training.sketches
        steps = training.timeline.due(self.every, STEP)
        self.check = SketchCheck(self.sketches, self.parameters, steps)
        return module_layout(self.sketches, "gradient of the training loss", "nats", self.every)

    def rehearse(self) -> None:
        self.sketches(self.parameters)

    def after_backward(self, step: Step) -> Rows:
        sketch, norm = self.sketches.of_gradients(step.index, self.parameters)
        self.check(step.index, sketch)
        return {"sketched": sketch, "norm": norm}

    def finish(self) -> dict[str, Any]:
        return {"sketch_error": self.check.facts()}


def module_layout(
    sketches: ModuleSketches,
    what: str,
    units: str,
    every: str,
    covers: Literal["moment", "stretch"] = "moment",
) -> Layout:
    """The layout that gradients and weight deltas share."""
    modules = len(sketches.modules)
    return Layout(
        arrays={
            "sketched": Array(
                STEP,
                ("module", "sketch"),
                (modules, sketches.size),
                f"random projection of the {what}: inner products are kept",
                units,
                covers=covers,
            ),
            "norm": Array(
                STEP, ("module",), (modules,), f"exact norm of the {what}", units, covers=covers
            ),
        },
        coords=module_coords(sketches.modules),
        every={STEP: every},
    )
