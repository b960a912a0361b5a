"""Activations changed by a user's TransformerLens hook functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from recovery_probe.errors import HookError, InputError
from recovery_probe.interventions import NOTEBOOK, Edit, Intervention, Step

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training


@dataclass
class EditActivations(Intervention):
    """Changes activations: a `function(tensor, *, hook)` returns the one to go on with, or nothing
    for the same. In evaluations, without which another network would be measured than is trained,
    it is called for each document by itself, with its slice (1, position, …). It may ask for the
    `step` (None in an evaluation) and the `document` by name. `*` in a pattern stands for anything.
    """

    name = "edit"

    # functions and the hook points that they change: file.py:FUNCTION@PATTERN, in this order
    hooks: tuple[str, ...] = ()
    # the passes in which they do
    during: Literal["training", "evaluation", "both"] = "both"

    @classmethod
    def of(cls, hooks: Iterable[tuple[Any, Callable[..., Any]]], **settings: Any) -> Self:
        """Of pairs (pattern, function) that are at hand in a notebook. The settings name them, and
        cannot bring them back."""
        from recovery_probe.functions import HookFunction

        functions = [HookFunction(pattern, function) for pattern, function in hooks]
        made = cls(hooks=tuple(f"{NOTEBOOK}{function}" for function in functions), **settings)
        made.functions = functions
        return made

    def start(self, training: Training) -> tuple[Edit, ...]:
        from recovery_probe.functions import HookFunction, split

        if not self.hooks:
            raise InputError("edit.hooks: no function given: file.py:FUNCTION@PATTERN")
        if not hasattr(self, "functions"):
            for hook in self.hooks:
                if hook.startswith(NOTEBOOK):
                    raise InputError(
                        f"edit.hooks: {hook}: a function of a notebook; pass it to fit again, or "
                        "put it in a file: file.py:FUNCTION@PATTERN"
                    )
            self.functions = [HookFunction(*split(hook, "edit.hooks")) for hook in self.hooks]
        passes: tuple[Literal["training", "evaluation"], ...] = ("training", "evaluation")
        try:
            return tuple(
                Edit(point, self._edit(function), when)
                for function in self.functions
                for point in function.points(training)
                for when in passes
                if self.during in (when, "both")
            )
        except InputError as error:
            raise InputError(f"edit.hooks: {error}") from error

    def _edit(self, function: Any) -> Callable[..., Tensor | None]:
        def edit(tensor: Tensor, *, hook: Any, moment: Step | range) -> Tensor | None:
            import torch

            from recovery_probe.functions import moment_of, replaces, seen

            parts, changed = [], False
            for step, document, part in function.parts(tensor, hook, moment):
                value = function(part, hook, step, document)
                if value is not None and not replaces(value, part):
                    where = seen(moment_of(step, document), hook, part)
                    raise HookError(
                        f"hook {function.name} returned a {type(value).__name__} in {where}: an "
                        "intervention returns a tensor of the same shape, or nothing"
                    )
                parts.append(part if value is None else value)
                changed |= value is not None
            return torch.cat(parts) if changed else None

        return edit
