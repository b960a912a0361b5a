"""A user's TransformerLens hook function, and the hook points that it is for."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from recovery_probe import plugins
from recovery_probe.errors import HookError, InputError
from recovery_probe.hooking import shapes_at
from recovery_probe.moments import Step
from recovery_probe.plugins import AUTHORS, reason
from recovery_probe.spelling import nearest
from recovery_probe.training import Training

Pattern = str | Sequence[str] | Callable[[str], bool]


class HookFunction:
    """`function(tensor, *, hook)` at every hook point that `pattern` matches: a string in which `*`
    stands for anything, several of them, or a function of a name. A function with parameters called
    `step` (None in an evaluation) and `document` is given them.

    Raises `InputError` for a function that takes something else.
    """

    def __init__(self, pattern: Pattern, function: Callable[..., Any], name: str | None = None):
        self.pattern, self.function = pattern, function
        plain = function.func if isinstance(function, functools.partial) else function
        self.name = name or str(getattr(plain, "__name__", type(plain).__name__))
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
        return f"{self.name}@{pattern if isinstance(pattern, str) else ','.join(pattern)}"

    def points(self, training: Training) -> list[str]:
        """The hook points that match and fire. Raises `InputError` for none."""
        known, pattern = list(training.model.bridge.hook_dict), self.pattern
        if callable(pattern):
            matched = [name for name in known if pattern(name)]
        else:
            patterns = [pattern] if isinstance(pattern, str) else list(pattern)
            matched = [n for n in known if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not matched:
            near = nearest(pattern.replace("*", "0"), known) if isinstance(pattern, str) else ""
            raise InputError(f"hook {self.name}: no hook point is called {pattern!r}{near}")
        fired = shapes_at(training, matched)
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

    def __call__(
        self, tensor: Tensor, hook: Any, step: int | None, document: int, when: str = ""
    ) -> Any:
        """What the function returns. Raises `HookError` when it fails."""
        known = {"step": step, "document": document}
        try:
            return self.function(tensor, hook=hook, **{word: known[word] for word in self.asks})
        except AUTHORS as error:
            where = seen(when or moment_of(step, document), hook, tensor)
            raise HookError(f"hook {self.name} failed in {where}: {reason(error)}") from error

    def parts(
        self, tensor: Tensor, hook: Any, moment: Step | range
    ) -> Iterator[tuple[int | None, int, Tensor]]:
        """Step, document and tensor of each call: one in training; in an evaluation one for each
        document, with its slice (1, …). Raises `HookError` where a tensor has no document axis."""
        if isinstance(moment, Step):
            yield moment.index, moment.document, tensor
            return
        if len(tensor) != len(moment):
            raise HookError(
                f"hook {self.name} in {moment_of(None, moment[0])}, at {hook.name}: a tensor of "
                f"shape {tuple(tensor.shape)} cannot be told apart by document; match other points"
            )
        for i, document in enumerate(moment):
            yield None, document, tensor[i : i + 1]


def moment_of(step: int | None, document: int) -> str:
    """When a function was called, in words."""
    return f"the evaluation of document {document}" if step is None else f"step {step}"


def seen(when: str, hook: Any, tensor: Tensor) -> str:
    """What a function was given, in words."""
    return f"{when}, at {hook.name}, with a tensor of shape {tuple(tensor.shape)}"


def replaces(value: Any, tensor: Tensor) -> bool:
    """Whether TransformerLens would put what a function returned in place of the activation."""
    return isinstance(value, Tensor) and value.shape == tensor.shape


def split(text: str, flag: str = "--hook") -> tuple[str, Callable[..., Any]]:
    """(pattern, function) of `mine.py:function@pattern`, as the command line takes it."""
    function, _, pattern = text.rpartition("@")
    if not (function and pattern):
        raise InputError(f"{flag} {text}: expected file.py:FUNCTION@PATTERN")
    try:
        loaded = plugins.load("hooks", function)
    except InputError as error:
        raise InputError(f"{flag} {text}: {error}") from error
    if not callable(loaded):
        raise InputError(f"{flag} {text}: {function} is a {type(loaded).__name__}, not a function")
    return pattern, loaded


def _signature(name: str, function: Any) -> str:
    try:
        return f"{name}{inspect.signature(function)}"
    except (TypeError, ValueError):
        return f"a {type(function).__name__}"
