"""Every document's loss change, allocated to the modules that an episode moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from recovery_probe.record.layout import EPISODE, Array, module_coords
from recovery_probe.recorders import Episode, Layout, Recorder, Rows, Step

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

PLACES = (3, 6, 12, 24)  # on the line, until they are enough


@dataclass
class Allocation(Recorder):
    """`allocated` (episodes_done, module, document), nats: ∫⟨∇_m l_j, d_m w⟩, what the last
    episode's change of the weights of module m did to the mean loss (eval mode) of document j, on
    the straight line from the weights before the episode to those after; below 0 it helped. Loss
    change allocation (Lan et al. 2019, arXiv 1909.01440), of each document. `residual`
    (episodes_done, document): its sum over modules minus the recorded change of the loss. `places`
    (episodes_done): where on a line gradients were taken, twice as many each time that residuals
    were larger than `accuracy` allows.

    The sum over modules is of the end points, and the same on any path; its split is of the path.

    Whatever moved the weights is allocated, what weight decay or an intervention did too.
    """

    name = "allocation"
    makes_passes = True
    sees_every_step = True

    # the last so many epochs
    epochs: Annotated[int, Ge(1)] = 2
    # residuals of an episode, as a share of the loss changes they are of
    accuracy: Annotated[float, Gt(0)] = 0.02
    # the line followed: the whole episode's, or that of each step in turn, which takes as many
    # times the passes, and a copy of the weights, as an episode has steps
    line: Literal["episode", "step"] = "episode"

    def start(self, training: Training) -> Layout:
        from recovery_probe.directional_derivatives import DirectionalDerivatives

        self.training, self.derivatives = training, DirectionalDerivatives(training)
        self.steps, self.after = training.timeline.steps, training.timeline.last(self.epochs)
        self.path: list[dict[str, Tensor]] = []  # the weights where each line of an episode begins
        modules, documents = self.derivatives.modules, len(training.documents)
        size = len(modules), documents
        about = "loss change of a document by the last episode's change of a module's weights"
        left = "sum of `allocated` over modules minus the recorded change of the loss"
        return Layout(
            arrays={
                "allocated": Array(EPISODE, ("module", "document"), size, about, "nats", "float64"),
                "residual": Array(EPISODE, ("document",), size[1:], left, "nats", "float64"),
                "places": Array(
                    EPISODE, (), (), "places on the line where gradients were taken", "1", "int64"
                ),
            },
            coords=module_coords(modules),
            since={EPISODE: self.after + 1},
        )

    def rehearse(self) -> float:
        """At one place, of those that an episode needs at least."""
        weights = {name: p.detach() for name, p in self.training.model.parameters.items()}
        self.derivatives(weights)
        return PLACES[0] * (self.steps if self.line == "step" else 1)

    def before_step(self, step: Step) -> Rows:
        first = step.index % self.steps == 0
        if first:
            self.path.clear()
        if step.episode >= self.after and (first or self.line == "step"):
            parameters = self.training.model.parameters
            self.path.append({name: p.detach().clone() for name, p in parameters.items()})
        return None

    def after_episode(self, episode: Episode) -> Rows:
        rows, done = self.training.rows, episode.done
        if done <= self.after:
            return None
        change = rows[done] - rows[done - 1]
        for places in PLACES:
            allocated = self.derivatives.along(self.path, places).cpu().numpy()
            residual = allocated.sum(axis=0) - change
            if abs(residual).sum() <= self.accuracy * abs(change).sum():
                break
        return {"allocated": allocated, "residual": residual, "places": places}
