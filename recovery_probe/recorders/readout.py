"""What the logits of every document say: its loss, what is left of it with their temperature or a
bias over the vocabulary set right, and how far up the right tokens stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE, Array
from recovery_probe.recorders import Episode, Layout, Recorder, Rows

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

# name -> what it is, and its units
ARRAYS = {
    "loss": ("mean cross-entropy", "nats"),
    "tempered": ("the same at the document's own best temperature, min over τ of CE(z/τ)", "nats"),
    "biased": ("the same with the bias over the vocabulary that fits all other documents", "nats"),
    "both": (
        "the same with that bias, at its own best temperature then",
        "nats",
    ),
    "log_rank": ("mean log of how many tokens are at least as likely as the right one", "nats"),
    "accuracy": ("share of its tokens that are the likeliest", "1"),
    "temperature": ("τ, its own best; between 1/20 and 20", "1"),
}


@dataclass
class Readout(Recorder):
    """`loss`, `tempered`, `biased`, `both`, `log_rank`, `accuracy`, `temperature` (episodes_done,
    document), means over a document's tokens, of two passes of its own over all documents in eval
    mode (`readings.of_documents`).

    A temperature is fitted to each document by itself, at each time: one for all documents at a
    time would be of all ages at once, and could not make a loss rise and fall by age. A bias is
    fitted to all *other* documents at that time, held-out ones among them: to one's own it would
    tell the document's tokens. It is over the tokens that are to be predicted somewhere, with one
    number for all others."""

    name = "readout"
    makes_passes = True

    # episode, N episodes or epoch
    every: str = "episode"
    # how many of the last epochs: two hold a whole wait of every document of a cycle; 0 for all
    epochs: Annotated[int, Ge(0)] = 2
    # of the biases: half of this times each one's square is added to the summed loss; 1 expects
    # biases of about one nat
    ridge: Annotated[float, Gt(0)] = 1.0

    def start(self, training: Training) -> Layout:
        from recovery_probe.readings import Classes

        if "tokens" not in training.inputs:
            raise InputError("readout: documents without tokens; --no-record readout")
        self.training, count = training, len(training.documents)
        self.classes = Classes.of(training.inputs)
        begin = training.timeline.last(self.epochs)
        return Layout(
            {
                name: Array(EPISODE, ("document",), (count,), about, units, "float64")
                for name, (about, units) in ARRAYS.items()
            },
            every={EPISODE: self.every},
            since={EPISODE: begin + 1 if begin else 0},
        )

    def rehearse(self) -> None:
        self.rows()

    def after_episode(self, episode: Episode) -> Rows:
        return self.rows()

    def rows(self) -> dict[str, Any]:
        from recovery_probe.readings import of_documents

        return dict(of_documents(self.batches, self.classes, self.ridge))

    def batches(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        training, size = self.training, self.training.settings.eval_batch
        training.model.train(False)
        for start in range(0, len(training.documents), size):
            batch = training.batch(slice(start, start + size))
            yield training.model.logits(batch), batch
