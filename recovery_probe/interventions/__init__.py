"""What an intervention is: a plug-in that changes training. It records nothing.

Named in the settings, it stands in `config.toml` with its own settings, which so repeats the run.
At each moment interventions act before recorders watch, in the order in which they are named:

    start(training) -> edits     before_step(step)     inputs(step, inputs) -> inputs
    labels(step, inputs) -> inputs     gradients(step)     weights(step)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from recovery_probe.moments import Step as Step
from recovery_probe.plugins import Plugin

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

NOTEBOOK = "notebook:"  # begins a setting that stands for an object, which cannot be brought back


@dataclass(frozen=True)
class Edit:
    """A change of an activation: `function(tensor, *, hook, moment)` returns the tensor to go on
    with, or None for the same. `moment` is the `Step`, or for an evaluation the range of documents
    in the batch."""

    name: str  # of the hook point
    function: Callable[..., Tensor | None]
    during: Literal["training", "evaluation"] = "training"


class Intervention(Plugin):
    """The base of every intervention: override the moments you need."""

    group: ClassVar[str] = "interventions"

    def start(self, training: Training) -> Iterable[Edit] | None:
        """Before any training: the activations that it will change, if any. Raises `InputError`
        when it cannot act on this network."""

    def before_step(self, step: Step) -> None:
        """Before the forward pass."""

    def inputs(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the network is given at a step, instead of `inputs` (name -> (1, …)); the loss is
        of the document as it is."""
        return inputs

    def labels(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        """The document that the loss of a step is of, instead of `inputs` (name -> (1, …)): of
        text, `tokens` are what should come at each position."""
        return inputs

    def gradients(self, step: Step) -> None:
        """After the backward pass: change `grad` of `step.model.parameters`."""

    def weights(self, step: Step) -> None:
        """After the step: change `step.model.parameters`, in place, without gradient."""

    def state(self) -> dict[str, Any]:
        """What it remembers from one episode to the next, beside what `start` makes: tensors,
        arrays, numbers and text, in dicts and lists. A run that goes on from a checkpoint gives it
        back, to `restore`, after `start`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""
