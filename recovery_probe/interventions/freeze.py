"""Parts of the network held fixed."""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from recovery_probe.errors import InputError
from recovery_probe.interventions import Intervention, Step
from recovery_probe.saying import say
from recovery_probe.spelling import nearest

if TYPE_CHECKING:
    from recovery_probe.training import Training

EMBEDDINGS = ("embed", "pos_embed")


@dataclass
class Freeze(Intervention):
    """Holds parts of the network fixed: before every step their gradients are taken away, and no
    optimizer moves what has none, with momentum or weight decay neither. They stay as they are, to
    the bit."""

    name = "freeze"

    # the embeddings of tokens and positions; where it is tied, the unembedding with them
    embeddings: bool = False
    # so many blocks from the start
    first: Annotated[int, Ge(0)] = 0
    # so many blocks from the end
    last: Annotated[int, Ge(0)] = 0
    # modules, with all that is in them, and parameters, by TransformerLens name; * stands for
    # anything: blocks.*.mlp, *.bias
    modules: tuple[str, ...] = ()

    def start(self, training: Training) -> None:
        parameters = training.model.parameters
        tied = "embed.weight" in parameters and "unembed.weight" not in parameters
        self._check(len(training.model.bridge.blocks), list(parameters), tied)
        blocks = range(len(training.model.bridge.blocks))
        held = [*blocks[: self.first], *blocks[len(blocks) - self.last :]]
        patterns = [*(EMBEDDINGS if self.embeddings else ()), *self.modules]
        patterns += [f"blocks.{block}" for block in held]
        self.frozen = {
            name: parameter
            for name, parameter in parameters.items()
            if any(fnmatch.filter(_around(name), pattern) for pattern in patterns)
        }
        if not self.frozen:
            raise InputError(
                "freeze: nothing to hold fixed; set freeze.embeddings, freeze.first, freeze.last "
                "or freeze.modules"
            )
        if len(self.frozen) == len(parameters):
            raise InputError("freeze: every parameter is held fixed, and none left to train")
        fixed, total = (sum(p.numel() for p in ps.values()) for ps in (self.frozen, parameters))
        with_it = ", the tied unembedding among them" * (tied and "embed.weight" in self.frozen)
        say(f"freeze: {fixed} of {total} weights held fixed{with_it}")

    def gradients(self, step: Step) -> None:
        for parameter in self.frozen.values():
            parameter.grad = None

    def _check(self, blocks: int, parameters: list[str], tied: bool) -> None:
        """Raise `InputError` for something to hold fixed that the network does not have."""
        for end in ("first", "last"):
            if getattr(self, end) > blocks:
                raise InputError(
                    f"freeze.{end} = {getattr(self, end)}: the network has {blocks} blocks"
                )
        known = list(dict.fromkeys(part for name in parameters for part in _around(name)))
        for pattern in self.modules:
            if not fnmatch.filter(known, pattern):
                near = nearest(pattern.replace("*", "0"), known)
                if tied and pattern.startswith("unembed"):
                    near = "; the unembedding of this network is 'embed'"
                raise InputError(
                    f"freeze.modules: no module or parameter is called {pattern!r}{near}"
                )


def _around(name: str) -> list[str]:
    """`blocks`, `blocks.0`, `blocks.0.ln1`, `blocks.0.ln1.bias` of the last."""
    return list(itertools.accumulate(name.split("."), "{}.{}".format))
