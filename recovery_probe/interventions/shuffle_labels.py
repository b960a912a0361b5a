"""Labels that mean nothing: a negative control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recovery_probe.errors import InputError
from recovery_probe.interventions import Intervention, Step
from recovery_probe.seeds import generator

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class ShuffleLabels(Intervention):
    """In training, what should come at each position is another token of the same document, in an
    order drawn anew at every visit: but for which tokens it has, there is nothing about a document
    to learn, and nothing to recover. Inputs and evaluations are as they were; `train_loss` is of
    the shuffled labels."""

    name = "shuffle_labels"

    def start(self, training: Training) -> None:
        if "tokens" not in training.inputs:
            raise InputError("shuffle_labels: the documents have no tokens to shuffle")
        self.seed = training.settings.seed.order

    def labels(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        # Nothing is asked of position 0.
        draws = generator(self.seed, f"labels of episode {step.episode}").permutation(
            step.length - 1
        )
        tokens = inputs["tokens"]  # (1, C)
        order = 1 + torch.from_numpy(draws).to(tokens.device)
        tokens[:, 1 : step.length] = tokens[:, order]
        return inputs
