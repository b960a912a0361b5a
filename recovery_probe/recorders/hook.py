"""A user's TransformerLens hook function as a recorder: the simplest one there is."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recovery_probe import plugins
from recovery_probe.config import nearest
from recovery_probe.errors import HookError, InputError
from recovery_probe.recorders import (
    STEP,
    Array,
    Hook,
    Layout,
    Recorder,
    RunInfo,
    Step,
    as_array,
    hooked,
)


class HookRecorder(Recorder):
    """Calls `function(tensor, *, hook)` at every hook point that `pattern` matches (`*` stands for
    anything), in the training pass of every step, and records what it returns as `value`
    (step, hook_point, …).

    A hook that returns a tensor of the activation's own shape would replace the activation, and
    so change training: it is refused unless `may_edit`. One that returns nothing records nothing.
    A trial pass over document 0 before training tells the shape of what it returns.
    """

    def __init__(
        self, pattern: str, function: Callable[..., Any], *, may_edit: bool = False
    ) -> None:
        self.function = function
        self.name = getattr(self.function, "__name__", type(self.function).__name__)
        self.pattern, self.may_edit = pattern, may_edit
        try:
            inspect.signature(self.function).bind(None, hook=None)
        except TypeError:
            raise InputError(
                f"hook {self.name}: expected a function (tensor, *, hook), got "
                f"{self.name}{inspect.signature(self.function)}"
            ) from None

    def __str__(self) -> str:
        return f"{self.name}@{self.pattern}" + (" (may edit)" if self.may_edit else "")

    def start(self, run: RunInfo) -> Layout:
        known = list(run.model.bridge.hook_dict)
        self.points = [name for name in known if fnmatch.fnmatchcase(name, self.pattern)]
        if not self.points:
            raise InputError(
                f"hook {self.name}: no hook point is called {self.pattern!r}"
                f"{nearest(self.pattern.replace('*', '0'), known)}"
            )
        shapes = self._try(run)
        hooks = tuple(Hook(point, self.training, edits=self.may_edit) for point in self.points)
        if not shapes:
            return Layout(hooks=hooks)
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"{point}: {shape}" for point, shape in shapes.items())
            raise InputError(
                f"hook {self.name} returns different shapes ({told}); match fewer points"
            )
        self.recorded = list(shapes)
        shape = self.shape = next(iter(shapes.values()))
        dims = tuple(f"axis_{i}" for i in range(len(shape)))
        value = Array(
            STEP,
            ("hook_point", *dims),
            (len(self.recorded), *shape),
            f"what {self.name} returned",
            "unknown",
        )
        return Layout({"value": value}, {"hook_point": ("hook_point", self.recorded)}, hooks=hooks)

    def training(self, tensor: Tensor, *, hook: Any, moment: Step) -> Any:
        value = self._call(tensor, hook, f"step {moment.index}")
        if value is None or self._edits(value, tensor):
            return value
        at = self.recorded.index(hook.name)
        if at == 0:
            self.row: list[Any] = [np.nan] * len(self.recorded)
        if np.shape(as_array(value)) != self.shape:
            raise HookError(
                f"hook {self.name} returned shape {np.shape(as_array(value))} at {hook.name} in "
                f"step {moment.index}, and {self.shape} in the trial before training"
            )
        self.row[at] = as_array(value)
        last = at == len(self.recorded) - 1
        return {"value": np.stack(self.row).astype("float32")} if last else None

    def _call(self, tensor: Tensor, hook: Any, when: str) -> Any:
        seen = f"{when}, at {hook.name}, with a tensor of shape {tuple(tensor.shape)}"
        try:
            value = self.function(tensor, hook=hook)
        except Exception as error:
            raise HookError(
                f"hook {self.name} failed in {seen}: {type(error).__name__}: {error}"
            ) from error
        if self._edits(value, tensor) and not self.may_edit:
            raise HookError(
                f"hook {self.name} returned a tensor of the activation's own shape in {seen}: that "
                "would replace it and change training; return a smaller value to record, or add "
                "--hook-may-edit"
            )
        return value

    def _edits(self, value: Any, tensor: Tensor) -> bool:
        return isinstance(value, Tensor) and value.shape == tensor.shape

    @torch.no_grad()
    def _try(self, run: RunInfo) -> dict[str, tuple[int, ...]]:
        """Hook point -> shape of what the function returns there, from a trial pass."""
        shapes: dict[str, tuple[int, ...]] = {}

        def trial(tensor: Tensor, *, hook: Any) -> None:
            value = self._call(tensor, hook, "the trial before training")
            if value is not None and not self._edits(value, tensor):
                shapes[hook.name] = tuple(np.shape(as_array(value)))

        run.model.train(False)
        with hooked(run.model.bridge, [(point, "fwd", trial) for point in self.points]):
            run.model.bridge(run.tokens[:1], use_cache=False)
        return {point: shapes[point] for point in self.points if point in shapes}


def split(text: str) -> tuple[str, Callable[..., Any]]:
    """(pattern, function) of `mine.py:function@pattern`, as the command line takes it."""
    function, at, pattern = text.rpartition("@")
    if not (at and function and pattern):
        raise InputError(f"--hook {text}: expected file.py:FUNCTION@PATTERN")
    found = plugins.find("hooks", function, object)
    if not callable(found):
        raise InputError(f"--hook {text}: {function} is a {type(found).__name__}, not a function")
    return pattern, found
