"""Input tokens hidden at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from recovery_probe.errors import InputError
from recovery_probe.interventions import Intervention, Step
from recovery_probe.seeds import generator

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class Mask(Intervention):
    """In training, what the network is given has token ids set to 0, others at every step. The loss
    is of the document as it is, and so are evaluations."""

    name = "mask"

    # probability that an id is set to 0; the paper has 0.1, 0.2 and 0.3
    p: Annotated[float, Gt(0), Le(1)] = 0.1

    def start(self, training: Training) -> None:
        if "tokens" not in training.inputs:
            raise InputError("mask: the documents have no tokens to hide")
        self.seed = training.settings.seed.order

    def inputs(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        tokens = inputs["tokens"]  # (1, C)
        # From a stream of its own: torch's global one decides dropout.
        draws = generator(self.seed, f"mask of step {step.index}").random(tokens.shape)
        hidden = torch.from_numpy(draws < self.p).to(tokens.device)
        return {**inputs, "tokens": tokens.masked_fill(hidden & inputs["mask"], 0)}
