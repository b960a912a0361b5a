"""A user's TransformerLens hook function as a recorder: the simplest one there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recovery_probe.errors import HookError, InputError
from recovery_probe.functions import HookFunction, Pattern, moment_of, replaces, seen
from recovery_probe.hooking import hooked
from recovery_probe.moments import Episode, Step
from recovery_probe.record.layout import EPISODE, STEP, Array
from recovery_probe.recorders import Hook, Layout, Recorder, Rows
from recovery_probe.recorders.checks import untouched
from recovery_probe.recorders.points import Points
from recovery_probe.training import Training

TRIAL = "the trial before training"
MEND = (
    "to change training, make it an intervention: --intervene edit --edit.hooks FILE:FUNCTION@"
    "PATTERN (interventions=[(pattern, function)])"
)


class HookRecorder(Recorder):
    """Records what `function(tensor, *, hook)` returns at every hook point that `pattern` matches
    (`HookFunction`).

    `during="training"`: in the training pass of every step; recorded as `value` (step, hook_point,
    …). `"evaluation"`: once for each document, after every episode, with that document's slice
    (1, position, …); recorded as `evaluated` (episodes_done, hook_point, document, …). `"both"`: in
    both.

    A hook that returns a tensor of the activation's own shape would replace the activation, and so
    change training: it is refused, as is a change in place; the intervention `edit` is for that.
    One that returns nothing records nothing. Trial passes before training tell the shape of what it
    returns.
    """

    def __init__(
        self,
        pattern: Pattern,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        during: Literal["training", "evaluation", "both"] | None = None,
    ) -> None:
        self.function = HookFunction(pattern, function, name)
        self.name = self.function.name
        self.during = during or "training"
        if self.during not in ("training", "evaluation", "both"):
            raise InputError(
                f"hook {self.name}: during = {during!r}: expected 'training', 'evaluation' or "
                "'both'"
            )

    def __str__(self) -> str:
        return f"{self.function}" + (f" in {self.during}" if self.during != "training" else "")

    def start(self, training: Training) -> Layout:
        self.points = self.function.points(training)
        self.recorded: dict[str, tuple[int, ...]] = {}  # hook point -> shape
        self.dtype = np.dtype(np.float32)  # or float64, where a value is of that
        self._try(training)
        self.row = Points(self.recorded)
        documents = range(len(training.documents))
        self.evaluated = Points((point, d) for point in self.recorded for d in documents)
        arrays: dict[str, Array] = {}
        if self.recorded:
            shape = next(iter(self.recorded.values()))
            dims, points = tuple(f"axis_{i}" for i in range(len(shape))), len(self.recorded)
            about: dict[str, Any] = {
                "description": f"what {self.name} returned",
                "units": "unknown",
                "dtype": str(self.dtype),
            }
            if self._in("training"):
                arrays["value"] = Array(STEP, ("hook_point", *dims), (points, *shape), **about)
            if self._in("evaluation"):
                dims, shape = ("document", *dims), (len(documents), *shape)
                arrays["evaluated"] = Array(
                    EPISODE, ("hook_point", *dims), (points, *shape), **about
                )
        passes: tuple[Literal["training", "evaluation"], ...] = ("training", "evaluation")
        hooks = [
            Hook(p, self.watch, when) for p in self.points for when in passes if self._in(when)
        ]
        coords = {"hook_point": ("hook_point", list(self.recorded))} if arrays else {}
        return Layout(arrays, {**coords}, hooks=tuple(hooks))

    def _in(self, passes: str) -> bool:
        return self.during in (passes, "both")

    def before_step(self, step: Step) -> Rows:
        self.row.row()  # nothing of an earlier step is left
        return None

    def watch(self, tensor: Tensor, *, hook: Any, moment: Step | range) -> None:
        for step, document, part in self.function.parts(tensor, hook, moment):
            when = moment_of(step, document)
            value = self._call(part, hook, step, document, when)
            if value is None:
                continue
            number = self._number(value, hook.name, when)
            if step is None:
                self.evaluated.put((hook.name, document), number)
            else:
                self.row.put(hook.name, number)

    def after_backward(self, step: Step) -> Rows:
        return self.row.rows("value")

    def after_episode(self, episode: Episode) -> Rows:
        row = self.evaluated.row()  # (hook points · documents, …)
        if row is None:
            return None
        return {"evaluated": row.unflatten(0, (len(self.recorded), -1))}

    def _call(self, tensor: Tensor, hook: Any, step: int | None, document: int, when: str) -> Any:
        """What the function returns. Raises `HookError` when it fails, or would change training."""
        where = seen(when, hook, tensor)

        def changed() -> str:
            return (
                f"hook {self.name} changed the activation in place in {where}: that would change "
                f"training; work on a copy (tensor.clone()), or, {MEND}"
            )

        with untouched(tensor, changed, values=when == TRIAL):
            value = self.function(tensor, hook, step, document, when)
        if replaces(value, tensor):
            raise HookError(
                f"hook {self.name} returned a tensor of the activation's own shape in {where}: "
                "that would replace it and change training; return a smaller value to record, or, "
                f"{MEND}"
            )
        return value

    def _number(self, value: Any, point: str, when: str) -> Tensor:
        """What the function returned, as a tensor of the recorded kind; it stays on its device."""
        number = self._tensor(value, point, when)
        if tuple(number.shape) != self.recorded.get(point):
            before = f"{self.recorded[point]}" if point in self.recorded else "nothing"
            raise HookError(
                f"hook {self.name} returned shape {tuple(number.shape)} at {point} in {when}, and "
                f"{before} in {TRIAL}"
            )
        return number.to(getattr(torch, str(self.dtype)))

    def _tensor(self, value: Any, point: str, when: str) -> Tensor:
        try:
            number = value.detach() if isinstance(value, Tensor) else torch.tensor(np.array(value))
        except Exception as error:
            why = " ".join(str(error).split())[:120]
            raise HookError(
                f"hook {self.name} returned a {type(value).__name__} at {point} in {when}: "
                f"expected a number, an array or a tensor ({why})"
            ) from error
        if number.is_complex() or number.layout != torch.strided or number.device.type == "meta":
            raise HookError(
                f"hook {self.name} returned a tensor of {number.dtype}, {number.layout} on "
                f"{number.device} at {point} in {when}: expected real numbers, dense"
            )
        return number

    @torch.no_grad()
    def _try(self, training: Training) -> None:
        """Trial passes: what the function returns where, and that it changes nothing."""
        documents = range(1)

        def trial(tensor: Tensor, *, hook: Any) -> None:
            parts: list[tuple[int | None, int, Tensor]] = [(0, 0, tensor)]
            if len(documents) > 1:
                parts = list(self.function.parts(tensor, hook, documents))
            for step, document, part in parts:
                self._note(self._call(part, hook, step, document, TRIAL), hook.name)

        training.model.train(False)
        with hooked(training.model.bridge, [(point, "fwd", trial) for point in self.points]):
            for passes, documents in (("training", range(1)), ("evaluation", range(2))):
                if self._in(passes):
                    training.losses(slice(len(documents)))

    def _note(self, value: Any, point: str) -> None:
        """The shape and the kind of number that a trial gave at a point."""
        if value is None:
            return
        number = self._tensor(value, point, TRIAL)
        kind = np.float32 if number.dtype == torch.bfloat16 else str(number.dtype)[6:]
        self.dtype = np.result_type(self.dtype, kind)
        shape = tuple(number.shape)
        if {shape, self.recorded.setdefault(point, shape)} != {*self.recorded.values()}:
            shapes = ", ".join(f"{p}: {s}" for p, s in self.recorded.items())
            raise InputError(
                f"hook {self.name} returns different shapes ({shapes}, {point}: {shape}); match "
                "fewer points"
            )
