"""The linearised network: what a network would be if its features could not change.

f(θ₀) + J(θ₀)(θ - θ₀), logits, is linear in the weights θ: trained, its kernel J(θ₀)J(θ₀)ᵀ stays
what it is at θ₀ (Jacot, Gabriel and Hongler 2018; Lee et al. 2019). It is a `Model`, so that
whatever trains a network trains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from recovery_probe.errors import Missing
from recovery_probe.models import Model, text
from recovery_probe.models.devices import lent_generators
from recovery_probe.models.text import Inputs


@dataclass(frozen=True)
class Linearised(Model):
    """A network linearised at the weights that it has when this is made of it, `start`.

    Its `parameters` are the network's own, which training moves. Logits come of forward-mode
    derivatives at `start` in the direction moved, and their gradients of these: nothing of the size
    of J is formed, and a pass takes about twice what the network's does. Hooks are let alone.
    """

    start: dict[str, Tensor]  # θ₀, by TransformerLens name
    _places: tuple[tuple[dict[str, Tensor], str, str], ...]  # where a module finds each: its name

    @classmethod
    def of(cls, model: Model) -> Linearised:
        """Raises `Missing` for a network whose passes draw random numbers, as dropout does."""
        if draws(model):
            raise Missing(
                "the network has dropout: every pass is one of another network, and there is none "
                "to linearise; train one with --model.dropout 0"
            )
        names = {id(p): name for name, p in model.parameters.items()}
        places = tuple(
            (module._parameters, own, names[id(p)])
            for module in model._modules
            for own, p in module._parameters.items()
            if id(p) in names
        )
        start = {name: p.detach().clone() for name, p in model.parameters.items()}
        given = {f.name: getattr(model, f.name) for f in fields(Model)}
        return cls(**given, start=start, _places=places)  # type: ignore[arg-type]

    def logits(self, inputs: Inputs) -> Tensor:
        """(documents, C, vocabulary), in the network's own number format."""
        with forward_ad.dual_level():
            at = {
                name: forward_ad.make_dual(own, self.parameters[name] - own)
                for name, own in self.start.items()
            }
            # PyTorch's fused attention has no forward derivative; the plain one has.
            with self._at(at), self.bypass(), sdpa_kernel(SDPBackend.MATH):
                value, change = forward_ad.unpack_dual(text.logits(self.bridge, inputs))
        return value.detach() + change

    @contextmanager
    def _at(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Meanwhile the network computes with these weights."""
        before = [(place, own, place[own]) for place, own, _ in self._places]
        for place, own, name in self._places:
            place[own] = weights[name]
        try:
            yield
        finally:
            for place, own, parameter in before:
                place[own] = parameter


def draws(model: Model) -> bool:
    """Whether passes in training draw random numbers: a dropout module says so, or two passes under
    other seeds differ. (A configuration does not: some of its probabilities are read by nobody.)"""
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model._modules):
        return True
    tried = text.probe(min(16, model.vocabulary), model.device)
    found = []
    model.train()
    for seed in range(2):
        with torch.no_grad(), lent_generators(seed, model.device):
            found.append(model.logits(tried))
    model.train(False)
    return not torch.equal(*found)
