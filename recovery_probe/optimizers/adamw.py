"""Adam, its weight decay decoupled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from recovery_probe.optimizers.adam import Adam
from recovery_probe.plugins import settings_of

if TYPE_CHECKING:
    import torch


@dataclass
class AdamW(Adam):
    """`torch.optim.AdamW`, one kernel for each step."""

    name = "adamw"

    # decoupled decay: every weight loses lr times this share of itself at each step
    weight_decay: Annotated[float, Ge(0)] = 0.0
    # the largest mean square so far, instead of the latest
    amsgrad: bool = False

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(parameters, fused=True, **settings_of(self))
