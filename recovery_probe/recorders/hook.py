"""A user's TransformerLens hook function as a recorder: the simplest one there is."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recovery_probe import plugins
from recovery_probe.config import nearest
from recovery_probe.errors import HookError, InputError
from recovery_probe.recorders import (
    EPISODE,
    STEP,
    Array,
    Episode,
    Hook,
    Layout,
    Points,
    Recorder,
    Rows,
    RunInfo,
    Step,
    hooked,
    shapes_at,
)
from recovery_probe.recorders.checks import untouched

Pattern = str | Sequence[str] | Callable[[str], bool]


class HookRecorder(Recorder):
    """Calls `function(tensor, *, hook)` at every hook point that `pattern` matches: a string in
    which `*` stands for anything, several of them, or a function of a name.

    `during="training"`: in the training pass of every step; what it returns is recorded as
    `value` (step, hook_point, …). `"evaluation"`: once for each document, after every episode,
    with that document's slice (1, position, …); recorded as `evaluated` (episodes_done,
    hook_point, document, …). `"both"`, the default of a hook that may edit: what is trained in
    would otherwise not be measured. A function with parameters called `step` (None in an
    evaluation) and `document` is told them.

    A hook that returns a tensor of the activation's own shape would replace the activation, and
    so change training: it is refused unless `may_edit`, as is a change in place. One that returns
    nothing records nothing. Trial passes before training tell the shape of what it returns.
    """

    def __init__(
        self,
        pattern: Pattern,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        may_edit: bool = False,
        during: Literal["training", "evaluation", "both"] | None = None,
    ) -> None:
        self.function, self.pattern, self.may_edit = function, pattern, may_edit
        plain = function.func if isinstance(function, functools.partial) else function
        self.name = name or str(getattr(plain, "__name__", type(plain).__name__))
        self.during = during or ("both" if may_edit else "training")
        if self.during not in ("training", "evaluation", "both"):
            raise InputError(
                f"hook {self.name}: during = {during!r}: expected 'training', 'evaluation' or "
                "'both'"
            )
        try:
            known = inspect.signature(function).parameters
            self.asks = [word for word in ("step", "document") if word in known]
            inspect.signature(function).bind(None, hook=None, **dict.fromkeys(self.asks))
        except (TypeError, ValueError):
            raise InputError(
                f"hook {self.name}: expected a function (tensor, *, hook), which may ask for step "
                f"and document too; got {_signature(self.name, function)}"
            ) from None

    def __str__(self) -> str:
        pattern = self.pattern
        if callable(pattern):
            pattern = getattr(pattern, "__name__", type(pattern).__name__)
        told = pattern if isinstance(pattern, str) else ",".join(pattern)
        when = "" if self.during == "training" else f" in {self.during}"
        return f"{self.name}@{told}{when}" + (" (may edit)" if self.may_edit else "")

    def start(self, run: RunInfo) -> Layout:
        self.points = self._points(run)
        self.recorded: dict[str, tuple[int, ...]] = {}  # hook point -> shape
        self.dtype = np.dtype(np.float32)  # or float64, where a value is one
        self._try(run)
        self.row = Points(self.recorded)
        documents = range(len(run.tokens))
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
        hooks: list[Hook] = []
        for point in self.points:
            if self._in("training"):
                hooks.append(Hook(point, self.training, "training", self.may_edit))
            if self._in("evaluation"):
                hooks.append(Hook(point, self.evaluation, "evaluation", self.may_edit))
        coords = {"hook_point": ("hook_point", list(self.recorded))} if arrays else {}
        return Layout(arrays, {**coords}, hooks=tuple(hooks))

    def _in(self, pass_: str) -> bool:
        return self.during in (pass_, "both")

    def _points(self, run: RunInfo) -> list[str]:
        """The hook points that match and fire."""
        known, pattern = list(run.model.bridge.hook_dict), self.pattern
        if callable(pattern):
            matched = [name for name in known if pattern(name)]
        else:
            patterns = [pattern] if isinstance(pattern, str) else list(pattern)
            matched = [n for n in known if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not matched:
            near = nearest(pattern.replace("*", "0"), known) if isinstance(pattern, str) else ""
            raise InputError(f"hook {self.name}: no hook point is called {pattern!r}{near}")
        fired = shapes_at(run, matched)
        silent = [name for name in matched if name not in fired]
        if not fired:
            raise InputError(
                f"hook {self.name}: {pattern!r} matches {len(silent)} hook points, such as "
                f"{silent[0]}, of which none ever fires in this model"
            )
        if silent:
            print(
                f"hook {self.name}: {len(silent)} of {len(matched)} hook points never fire and "
                f"are left out: {', '.join(silent)}",
                file=sys.stderr,
            )
        return list(fired)

    def before_step(self, step: Step) -> Rows:
        self.row.row()  # nothing of an earlier step is left
        return None

    def training(self, tensor: Tensor, *, hook: Any, moment: Step) -> Tensor | None:
        seen = f"step {moment.index}"
        found = self._call(tensor, hook, moment.index, moment.document, seen)
        if self._edits(found, tensor):
            return found
        if found is not None:
            self.row.put(hook.name, self._number(found, hook.name, seen))
        return None

    def after_backward(self, step: Step) -> Rows:
        return self.row.rows("value")

    def evaluation(self, tensor: Tensor, *, hook: Any, moment: range) -> Tensor | None:
        seen = f"the evaluation of document {moment[0]}"
        if len(tensor) != len(moment):
            raise HookError(
                f"hook {self.name} in {seen}, at {hook.name}: a tensor of shape "
                f"{tuple(tensor.shape)} cannot be told apart by document; match other points"
            )
        parts = [tensor[i : i + 1] for i in range(len(moment))]
        edited = False
        for i, document in enumerate(moment):
            seen = f"the evaluation of document {document}"
            found = self._call(parts[i], hook, None, document, seen)
            if self._edits(found, parts[i]):
                parts[i], edited = found, True
            elif found is not None:
                key = (hook.name, document)
                self.evaluated.put(key, self._number(found, hook.name, seen))
        return torch.cat(parts) if edited else None

    def after_episode(self, episode: Episode) -> Rows:
        row = self.evaluated.row()  # (hook points · documents, …)
        if row is None:
            return None
        return {"evaluated": row.unflatten(0, (len(self.recorded), -1))}

    def _call(self, tensor: Tensor, hook: Any, step: int | None, document: int, when: str) -> Any:
        """What the function returns. Raises `HookError` when it fails, or changes the tensor."""
        seen = f"{when}, at {hook.name}, with a tensor of shape {tuple(tensor.shape)}"
        known = {"step": step, "document": document}
        trial = when.startswith("the trial")
        told = (
            f"hook {self.name} changed the activation in place in {seen}: that would change "
            "training; work on a copy (tensor.clone()), or add --hook-may-edit"
        )
        quiet = nullcontext() if self.may_edit else untouched(tensor, told, values=trial)
        with quiet:
            try:
                value = self.function(
                    tensor, hook=hook, **{word: known[word] for word in self.asks}
                )
            except (Exception, SystemExit) as error:
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

    def _number(self, value: Any, point: str, when: str) -> Tensor:
        """What the function returned, as a tensor of the recorded kind; it stays on its device."""
        found = self._tensor(value, point, when)
        if tuple(found.shape) != self.recorded.get(point):
            before = f"{self.recorded[point]}" if point in self.recorded else "nothing"
            raise HookError(
                f"hook {self.name} returned shape {tuple(found.shape)} at {point} in {when}, and "
                f"{before} in the trial before training"
            )
        return found.to(getattr(torch, str(self.dtype)))

    def _tensor(self, value: Any, point: str, when: str) -> Tensor:
        try:
            found = value.detach() if isinstance(value, Tensor) else torch.tensor(np.array(value))
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise HookError(
                f"hook {self.name} returned a {type(value).__name__} at {point} in {when}: "
                f"expected a number, an array or a tensor ({reason})"
            ) from error
        if found.is_complex() or found.layout != torch.strided or found.device.type == "meta":
            raise HookError(
                f"hook {self.name} returned a tensor of {found.dtype}, {found.layout} on "
                f"{found.device} at {point} in {when}: expected real numbers, dense"
            )
        return found

    @torch.no_grad()
    def _try(self, run: RunInfo) -> None:
        """Trial passes: what the function returns where, and that it changes nothing."""
        documents = range(1)

        def note(value: Any, tensor: Tensor, point: str, when: str) -> None:
            if value is None or self._edits(value, tensor):
                return
            found = self._tensor(value, point, when)
            kind = np.float32 if found.dtype == torch.bfloat16 else str(found.dtype)[6:]
            self.dtype = np.result_type(self.dtype, kind)
            shape = self.recorded.setdefault(point, tuple(found.shape))
            if {shape, tuple(found.shape)} != {*self.recorded.values()}:
                told = ", ".join(f"{p}: {s}" for p, s in self.recorded.items())
                raise InputError(
                    f"hook {self.name} returns different shapes ({told}, {point}: "
                    f"{tuple(found.shape)}); match fewer points"
                )

        def trial(tensor: Tensor, *, hook: Any) -> None:
            when = "the trial before training"
            if documents.stop == 1:
                value = self._call(tensor, hook, 0, 0, when)
                note(value, tensor, hook.name, when)
            elif len(tensor) == len(documents):
                for i in documents:
                    one = tensor[i : i + 1]
                    note(self._call(one, hook, None, i, when), one, hook.name, when)
            else:
                self.evaluation(tensor, hook=hook, moment=documents)  # says what is wrong

        run.model.train(False)
        with hooked(run.model.bridge, [(point, "fwd", trial) for point in self.points]):
            for pass_, documents in (("training", range(1)), ("evaluation", range(2))):
                if self._in(pass_):
                    run.model.bridge(run.tokens[: len(documents)], use_cache=False)


def _signature(name: str, function: Any) -> str:
    try:
        return f"{name}{inspect.signature(function)}"
    except (TypeError, ValueError):
        return f"a {type(function).__name__}"


def split(text: str) -> tuple[str, Callable[..., Any]]:
    """(pattern, function) of `mine.py:function@pattern`, as the command line takes it."""
    function, at, pattern = text.rpartition("@")
    if not (at and function and pattern):
        raise InputError(f"--hook {text}: expected file.py:FUNCTION@PATTERN")
    found = plugins.find("hooks", function, object)
    if not callable(found):
        raise InputError(f"--hook {text}: {function} is a {type(found).__name__}, not a function")
    return pattern, found
