"""Adam, its weight decay a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt

from recovery_probe.optimizers import Optimizer
from recovery_probe.plugins import settings_of

if TYPE_CHECKING:
    import torch

Share = Annotated[float, Ge(0), Lt(1)]


@dataclass
class Adam(Optimizer):
    """`torch.optim.Adam`, one kernel for each step."""

    name = "adam"

    # learning rate, above 0
    lr: Annotated[float, Gt(0)] = 1e-3
    # how much of the running mean of gradients, and of their squares, is kept at each step
    betas: tuple[Share, Share] = (0.9, 0.999)
    # added to the root of the mean square, above 0
    eps: Annotated[float, Gt(0)] = 1e-8
    # L2 penalty
    weight_decay: Annotated[float, Ge(0)] = 0.0
    # the largest mean square so far, instead of the latest
    amsgrad: bool = False

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adam(parameters, fused=True, **settings_of(self))
