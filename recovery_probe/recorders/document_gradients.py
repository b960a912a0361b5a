"""Exact inner products between the gradients of all documents, by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recovery_probe.record.layout import EPISODE, Array, module_coords
from recovery_probe.recorders import Episode, Layout, Recorder, Rows

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class DocumentGradients(Recorder):
    """`inner` (episodes_done, module, document, other): ⟨Gᵢ, Gⱼ⟩ of the gradients of each
    document's mean loss (nats), in eval mode; their sum over modules is that of the whole model.
    They are of all parameters and no intervention acts on them: also where `freeze` holds one.
    """

    name = "document_gradients"
    makes_passes = True

    # episode, N episodes or epoch
    every: str = "epoch"

    def start(self, training: Training) -> Layout:
        from recovery_probe.gradient_products import GradientProducts

        self.products = GradientProducts(training)
        self.documents, modules = len(training.documents), self.products.modules
        return Layout(
            arrays={
                "inner": Array(
                    EPISODE,
                    ("module", "document", "other"),
                    (len(modules), self.documents, self.documents),
                    "inner product of two documents' gradients; held-out documents come last",
                    "nats²",
                    "float64",
                ),
            },
            coords=module_coords(modules),
            every={EPISODE: self.every},
        )

    def rehearse(self) -> float:
        """On two documents; more of them take more time in proportion, or a little more."""
        self.products(2)
        return self.documents / 2

    def after_episode(self, episode: Episode) -> Rows:
        return {"inner": self.products()}
