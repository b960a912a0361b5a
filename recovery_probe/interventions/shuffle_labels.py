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
        documents = training.documents
        if (short := documents.lengths[: documents.trained].min()) < 3:
            raise InputError(
                f"shuffle_labels: a document of {short} tokens, of which one is asked for, has no "
                "other order: raise documents.min_tokens (and documents.tokens) to 3 at least"
            )
        self.seed = training.settings.seed.order

    def labels(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        rng = generator(self.seed, f"labels of episode {step.episode}")
        tokens = inputs["tokens"]  # (1, C)
        # Nothing asks for the token at position 0.
        order = 1 + torch.from_numpy(rng.permutation(step.length - 1)).to(tokens.device)
        tokens[:, 1 : step.length] = tokens[:, order]
        return inputs
