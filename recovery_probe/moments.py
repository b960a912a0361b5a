"""What recorders and interventions are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.models import Model


@dataclass(frozen=True)
class Step:
    """One gradient step."""

    index: int  # from the start of the run
    episode: int
    document: int
    inputs: dict[str, Tensor]  # name -> (1, …), of the document
    length: int  # its real positions
    model: Model


@dataclass(frozen=True)
class Episode:
    """The moment after `done` episodes; 0 is before any training."""

    done: int
    model: Model
    # (T + H, C), nats, of text: the loss of the token at each position given those before it; NaN
    # at position 0 and past a document's end
    token_losses: Tensor
