"""How far the network is from what it was when each document was last trained on, as that document
feels it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE, Array
from recovery_probe.recorders import Episode, Layout, Recorder, Rows, Step
from recovery_probe.saying import say

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

# name -> what it is, with Δ the weights less those at the end of the document's last episode
ARRAYS = {
    "curvature": "ΔᵀGΔ, with the document's Gauss-Newton matrix G at the end of its last episode",
    "slope": "gᵀΔ, with the document's gradient g at the end of its last episode",
    "linear": "how its loss changes where its logits move by J·Δ, their Jacobian J there",
    "distance": "|Δ|², of all weights",
}


@dataclass
class StateReturn(Recorder):
    """`curvature`, `slope`, `linear`, `distance` (episodes_done, document), of the way
    Δ = w(t) - w_j from the weights w_j at the end of document j's last episode: ΔᵀGΔ and gᵀΔ,
    nats, with the Gauss-Newton matrix G and the gradient g of j's mean loss at w_j, in eval mode;
    how that loss changes when the logits move by J·Δ, as in a network that is linear in its
    weights; |Δ|². NaN
    before a document's first episode of the epochs that are watched, and of documents that are not
    watched. `watched` (document): whether it is.

    One Jacobian-vector product for each watched document at each time (`tangents.along`), two to
    three passes of one document; and a copy of the weights for each watched document in memory,
    and in each checkpoint that is written meanwhile."""

    name = "state_return"
    makes_passes = True
    sees_every_step = True

    # episode, N episodes or epoch
    every: str = "episode"
    # how many of the last epochs: two hold a whole wait of every document of a cycle; 0 for all
    epochs: Annotated[int, Ge(0)] = 2
    # how many documents to watch, evenly spaced in their order; 0 for all that are trained on
    documents: Annotated[int, Ge(0)] = 0

    def start(self, training: Training) -> Layout:
        from recovery_probe.machine import size_of

        if "tokens" not in training.inputs:
            raise InputError("state_return: documents without tokens; --no-record state_return")
        timeline, trained = training.timeline, training.documents.trained
        if self.documents > trained:
            raise InputError(f"state_return.documents = {self.documents}: {trained} are trained on")
        self.training = training
        self.kept: dict[int, dict[str, Tensor]] = {}  # document -> weights after its last episode
        number = self.documents or trained
        self.watched = [i * trained // number for i in range(number)]
        self.begin = timeline.last(self.epochs)
        times = timeline.due(self.every, EPISODE)
        self.due = {int(done) for done in times if done > self.begin}
        own = sum(p.numel() * p.element_size() for p in training.model.parameters.values())
        say(
            f"state_return keeps the weights of {number} documents: {size_of(number * own)} of "
            f"memory on {training.model.device}; state_return.documents asks for fewer"
        )
        count = len(training.documents)
        each = ("document",), (count,)
        return Layout(
            {
                name: Array(EPISODE, *each, about, "1" if name == "distance" else "nats", "float64")
                for name, about in ARRAYS.items()
            },
            coords={"watched": ("document", [i in self.watched for i in range(count)])},
            every={EPISODE: self.every},
            since={EPISODE: self.begin + 1},
        )

    def rehearse(self) -> float:
        """Of one document; a call is of all that are watched."""
        own = {n: p.detach() for n, p in self.training.model.parameters.items()}
        self.training.model.train(False)
        self.expanded(self.watched[0], own)
        return float(len(self.watched))

    def after_step(self, step: Step) -> Rows:
        last = (step.index + 1) % self.training.settings.steps == 0
        if last and step.episode >= self.begin and step.document in self.watched:
            weights = self.training.model.parameters.items()
            self.kept[step.document] = {n: p.detach().clone() for n, p in weights}
        return None

    def after_episode(self, episode: Episode) -> Rows:
        if episode.done not in self.due:
            return None
        import torch

        count = len(self.training.documents)
        rows = torch.full((len(ARRAYS), count), torch.nan, dtype=torch.float64)
        self.training.model.train(False)
        for document, then in self.kept.items():
            rows[:, document] = torch.stack(self.expanded(document, then)).cpu()
        return dict(zip(ARRAYS, rows, strict=True))

    def expanded(self, document: int, then: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The rows of `ARRAYS` of a document since its weights `then`."""
        import torch

        from recovery_probe.tangents import along, expansion, moved_loss

        model, inputs = self.training.model, self.training.batch(slice(document, document + 1))
        moved = {n: p.detach() - then[n] for n, p in model.parameters.items()}
        logits, derivative = along(model, moved, inputs, then)
        slope, curvature = expansion(logits, derivative, inputs)
        linear = moved_loss(logits, derivative, inputs)
        norms = [torch.linalg.vector_norm(d, dtype=torch.float64) for d in moved.values()]
        distance = torch.stack(norms).pow(2).sum()
        return curvature[0], slope[0], linear[0], distance

    def state(self) -> dict[str, Any]:
        """Nothing at the end: a run that goes on to more epochs watches the last ones of these."""
        ended = self.training.done == self.training.timeline.episodes
        return {} if ended else {"kept": self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        device = self.training.model.device
        self.kept = {
            document: {name: tensor.to(device) for name, tensor in weights.items()}
            for document, weights in state["kept"].items()
        }
