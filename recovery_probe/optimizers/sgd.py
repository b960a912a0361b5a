"""Stochastic gradient descent; plain descent without momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from recovery_probe.optimizers import Optimizer
from recovery_probe.plugins import settings_of

if TYPE_CHECKING:
    import torch


@dataclass
class SGD(Optimizer):
    """`torch.optim.SGD`, one kernel for each step."""

    name = "sgd"

    # learning rate, above 0
    lr: Annotated[float, Gt(0)] = 0.1
    # share of the last update that is kept, from 0 to below 1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    # share of a gradient that is left out of what is kept of it
    dampening: Annotated[float, Ge(0), Le(1)] = 0.0
    # looks ahead along what is kept; wants momentum, and no dampening
    nesterov: bool = False
    # L2 penalty
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                "optimizer.nesterov wants optimizer.momentum above 0, and optimizer.dampening 0"
            )

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(parameters, fused=True, **settings_of(self))
