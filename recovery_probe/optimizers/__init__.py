"""What an optimizer is: a plug-in that turns gradients into updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from recovery_probe.plugins import Plugin

if TYPE_CHECKING:
    import torch


class Optimizer(Plugin):
    """The base of every optimizer."""

    group: ClassVar[str] = "optimizers"

    def make(self, parameters: list[Any]) -> torch.optim.Optimizer:
        """A torch optimizer of these parameters, in a fresh state."""
        raise NotImplementedError


def plain_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """The learning rate of plain descent, whose step is -rate · gradient; None for any other, and
    where a schedule of rates, or anything else, is tied to its steps."""
    import torch

    tied = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if type(optimizer) is not torch.optim.SGD or tied or "step" in vars(optimizer):
        return None
    rates = {group["lr"] for group in optimizer.param_groups}
    others = ("momentum", "weight_decay", "nesterov", "maximize")
    plain = not any(group[name] for group in optimizer.param_groups for name in others)
    return float(rates.pop()) if plain and len(rates) == 1 else None
