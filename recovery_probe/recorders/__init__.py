"""What a recorder is, and how recorders take part in training.

A recorder watches training and writes named arrays. It says beforehand what it will write, then
gets one read-only `Step` or `Episode` at each moment, and returns named rows or nothing:

    start(run) -> Layout      before_step(step)     after_backward(step)     after_step(step)
    after_episode(episode)    finish() -> facts for the provenance

`after_episode` is also called once before training, with `done = 0`. Forward hooks that it asks
for in its layout see the training passes, or the evaluations, and return rows in the same way.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recovery_probe import plugins
from recovery_probe.config import Settings
from recovery_probe.errors import HookError, InputError

if TYPE_CHECKING:
    from recovery_probe.models import Model
    from recovery_probe.sketch import ModuleSketches
    from recovery_probe.writer import Writer

# What the record itself holds: no recorder may take these names.
RECORD = frozenset(
    [
        "losses",
        "train_loss",
        "document_of_episode",
        "tokens",
        "length",
        "name",
        "digest",
        "excerpt",
        "rows_committed",
        "document",
        "episode",
        "epoch",
        "step",
        "held_out",
        "episodes_done",
    ]
)
Rows = Mapping[str, Any] | None  # array name -> its row at this moment
Time = Literal["step", "episodes_done"]
STEP: Final = "step"
EPISODE: Final = "episodes_done"


@dataclass(frozen=True)
class RunInfo:
    """What a recorder may know when it starts."""

    settings: Settings
    model: Model
    tokens: Tensor  # (T + H, C)
    targets: Tensor  # (T + H, C), the next tokens; -100 where there is no loss
    lengths: NDArray[np.int64]  # (T + H,)
    schedule: NDArray[np.int32]  # (E·T,)
    path: Path
    sketches: ModuleSketches  # shared, so that no gradient is sketched twice


@dataclass(frozen=True)
class Step:
    """One gradient step."""

    index: int  # from the start of the run
    episode: int
    document: int
    tokens: Tensor  # (1, C)
    length: int  # real tokens
    model: Model


@dataclass(frozen=True)
class Episode:
    """The moment after `done` episodes; 0 is before any training."""

    done: int
    model: Model


@dataclass(frozen=True)
class Array:
    """An array that a recorder will fill, one row along time after the other."""

    time: Time
    dims: tuple[str, ...]  # of a row
    shape: tuple[int, ...]  # of a row
    description: str
    units: str = "1"
    dtype: str = "float32"


@dataclass(frozen=True)
class Hook:
    """A forward hook: `function(tensor, *, hook, moment)`, where `moment` is the `Step`, or for an
    evaluation the range of documents in the batch. Whatever it returns is recorded, never put in
    place of the tensor, unless `edits`."""

    name: str  # of the hook point
    function: Callable[..., Rows]
    during: Literal["training", "evaluation"] = "training"
    edits: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything a recorder will write and where it looks."""

    arrays: dict[str, Array] = field(default_factory=dict)
    coords: dict[str, tuple[str, Any]] = field(default_factory=dict)  # name -> dimension, values
    # Time dimension -> how often, as `times` reads it; every step and every episode when not said.
    every: dict[str, str] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    files: int = 0  # bytes written beside the record


class Recorder:
    """The base of every recorder: override `start` and the moments you need."""

    name: str
    # Called at every step, due or not, by a recorder that adds something up between due ones.
    sees_every_step = False

    def __str__(self) -> str:
        return self.name

    def start(self, run: RunInfo) -> Layout:
        """Say what will be written. Raises `InputError` when the run cannot be recorded so."""
        raise NotImplementedError

    def rehearse(self) -> None:
        """Do the work of one step on stand-in data: timed before training, to tell its share."""

    def before_step(self, step: Step) -> Rows:
        """Before the forward pass."""

    def after_backward(self, step: Step) -> Rows:
        """Gradients are there; weights have not moved."""

    def after_step(self, step: Step) -> Rows:
        """Weights have moved; gradients are still there."""

    def after_episode(self, episode: Episode) -> Rows:
        """All documents have been evaluated."""

    def finish(self) -> dict[str, Any]:
        """Facts for the provenance."""
        return {}


def module_coords(modules: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Coordinates of a `module` dimension: its name, its block (-1 for none) and its kind
    (`attn.q` of `blocks.3.attn.q`)."""
    split = [re.match(r"blocks\.(\d+)\.(.*)", m) for m in modules]
    return {
        "name": ("module", list(modules)),
        "block": ("module", [int(s[1]) if s else -1 for s in split]),
        "kind": ("module", [s[2] if s else m for s, m in zip(split, modules, strict=True)]),
    }


def times(every: str, settings: Settings, time: str) -> NDArray[np.int64]:
    """When a recorder is due: step indices, or numbers of episodes done.

    `every` is `step`, `N steps`, `episode`, `N episodes` or `epoch`. Steps are the first of
    their period; episodes done start at 0. Raises `InputError` for anything else.
    """
    T, E, M = settings.documents.count, settings.epochs, settings.steps
    match = re.fullmatch(r"(?:(\d+) )?(step|episode|epoch)s?", every)
    if not match or match[1] == "0" or (time == EPISODE and match[2] == "step"):
        raise InputError(
            f"every = {every!r}: expected "
            + ("" if time == EPISODE else "'step', '5 steps', ")
            + "'episode', '5 episodes' or 'epoch'"
        )
    count = int(match[1] or 1)
    if time == STEP:
        return np.arange(0, E * T * M, count * {"step": 1, "episode": M, "epoch": M * T}[match[2]])
    return np.arange(0, E * T + 1, count * {"episode": 1, "epoch": T}[match[2]])


class _Watched:
    """A recorder at work: its layout, when it is due, the rows it has given, the time it took."""

    def __init__(self, recorder: Recorder, info: RunInfo) -> None:
        self.recorder = recorder
        self.layout = recorder.start(info)
        every = {STEP: "step", EPISODE: "episode", **self.layout.every}
        self.due = {d: times(every[d], info.settings, d) for d in (STEP, EPISODE)}
        self.seconds = 0.0
        self.rows: dict[str, dict[int, Any]] = defaultdict(dict)

    def row(self, dimension: str, time: int) -> int | None:
        """The row of a time that is due, or for which the recorder is called all the same."""
        due = self.due[dimension]
        row = int(np.searchsorted(due, time, side="right")) - 1
        exact = row >= 0 and due[row] == time
        return row if exact or (row >= 0 and self.recorder.sees_every_step) else None

    def take(self, moment: Callable[[], Rows], dimension: str, time_: int) -> None:
        """Call a moment that is due, and keep the rows it returns."""
        row = self.row(dimension, time_)
        if row is None:
            return
        start = time.perf_counter()
        try:
            rows = moment() or {}
        except HookError:
            raise
        except Exception as error:
            raise HookError(
                f"recorder {self.recorder.name} failed at {dimension} {time_}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for name, value in rows.items():
            array = self.layout.arrays.get(name)
            if array is None or np.shape(value) != array.shape:
                expected = (
                    f"of shape {array.shape}" if array else f"one of {list(self.layout.arrays)}"
                )
                raise HookError(
                    f"recorder {self.recorder.name} gave {name!r} of shape {np.shape(value)} at "
                    f"{dimension} {time_}; its layout says {expected}"
                )
            self.rows[name][row] = value
        self.seconds += time.perf_counter() - start


class Recording:
    """The recorders of one run. `attached` holds their hooks; the loop calls the moments."""

    def __init__(self, recorders: Iterable[Recorder], info: RunInfo) -> None:
        self.info = info
        self.moment: Step | range | None = None
        self.watched: list[_Watched] = []
        self.done = 0  # episodes, while evaluating
        for recorder in recorders:
            if recorder.name in (w.recorder.name for w in self.watched):
                raise InputError(f"two recorders are called {recorder.name!r}")
            self.watched.append(_Watched(recorder, info))
            if not recorder.name.isidentifier() or recorder.name in RECORD:
                raise InputError(
                    f"a recorder called {recorder.name!r} cannot have a group in the record; give "
                    "it another name (a function its own, by def)"
                )

    def lay_out(self, writer: Writer) -> None:
        """Lay every array out for the whole run, a group for each recorder."""
        for w in self.watched:
            if w.layout.arrays:
                due = {a.time: w.due[a.time] for a in w.layout.arrays.values()}
                writer.add_group(w.recorder.name, w.layout.arrays, w.layout.coords, due)

    def sizes(self) -> dict[str, dict[str, tuple[tuple[int, ...], int]]]:
        """Recorder -> array -> shape and bytes, uncompressed; `(files)` beside the record."""
        told: dict[str, dict[str, tuple[tuple[int, ...], int]]] = {}
        for w in self.watched:
            arrays = {}
            for name, a in w.layout.arrays.items():
                shape = (len(w.due[a.time]), *a.shape)
                arrays[name] = (shape, int(np.prod(shape)) * np.dtype(a.dtype).itemsize)
            if w.layout.files:
                arrays["(files)"] = ((), w.layout.files)
            told[w.recorder.name] = arrays
        return told

    def rehearse(self) -> dict[str, float]:
        """Recorder -> seconds of work of one step, the better of two tries."""
        told = {}
        for w in self.watched:
            tries = []
            for _ in range(2):
                start = time.perf_counter()
                w.recorder.rehearse()
                tries.append(time.perf_counter() - start)
            told[w.recorder.name] = min(tries)
        return told

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place; gone when it ends, also after an error."""
        hooks = [(w, hook) for w in self.watched for hook in w.layout.hooks]
        watching = [(hook.name, "fwd", self._watch(w, hook)) for w, hook in hooks]
        with hooked(self.info.model.bridge, watching):
            yield

    def _watch(self, w: _Watched, hook: Hook) -> Callable[..., Tensor | None]:
        def watching(tensor: Tensor, *, hook: Any) -> Tensor | None:
            edited: list[Tensor] = []

            def moment() -> Rows:
                rows = function(tensor, hook=hook, moment=self.moment)
                if edits and isinstance(rows, Tensor):
                    edited.append(rows)
                    return None
                return rows

            if isinstance(self.moment, Step) and during == "training":
                w.take(moment, STEP, self.moment.index)
            elif isinstance(self.moment, range) and during == "evaluation":
                w.take(moment, EPISODE, self.done)
            return edited[0] if edited else None

        function, during, edits = hook.function, hook.during, hook.edits
        return watching

    def before_step(self, step: Step) -> None:
        self.moment = step
        self._each("before_step", STEP, step.index, step)

    def after_backward(self, step: Step) -> None:
        self.moment = None
        self._each("after_backward", STEP, step.index, step)

    def after_step(self, step: Step) -> None:
        self._each("after_step", STEP, step.index, step)

    def after_episode(self, done: int) -> None:
        self.moment = None
        self._each("after_episode", EPISODE, done, Episode(done, self.info.model))

    def evaluating(self, documents: range, done: int) -> None:
        """The next forward pass evaluates these documents, after `done` episodes."""
        self.moment, self.done = documents, done

    def _each(self, moment: str, dimension: str, when: int, context: Step | Episode) -> None:
        for w in self.watched:
            w.take(partial(getattr(w.recorder, moment), context), dimension, when)

    def commit(self, writer: Writer) -> None:
        """Write the rows that have come in since the last commit."""
        for w in self.watched:
            start = time.perf_counter()
            for name, rows in w.rows.items():
                values = np.stack([as_array(v) for v in rows.values()])
                writer.write(w.recorder.name, name, min(rows), values)
            w.rows.clear()
            w.seconds += time.perf_counter() - start

    def finish(self, seconds: float) -> dict[str, Any]:
        """Facts for the provenance: what each recorder cost, and what it says itself."""
        facts: dict[str, Any] = {}
        for w in self.watched:
            facts |= w.recorder.finish()
        cost = {
            w.recorder.name: {
                "seconds": round(w.seconds, 3),
                "share": round(w.seconds / seconds, 4) if seconds else None,
            }
            for w in self.watched
        }
        return {"recorders": cost, **facts}


def find(settings: Settings) -> list[Recorder]:
    """The recorders that the settings name, through the plug-in door."""
    found = [plugins.find("recorders", name, type) for name in settings.recorders]
    for name, kind in zip(settings.recorders, found, strict=True):
        if not issubclass(kind, Recorder):
            raise InputError(f"{name}: {kind.__name__} is not a Recorder")
    return [kind() for kind in found]


@contextmanager
def hooked(bridge: Any, hooks: Iterable[tuple[str, str, Callable[..., Any]]]) -> Iterator[None]:
    """(hook point, `fwd` or `bwd`, function), attached; gone when it ends, also after an error."""
    attached = []
    try:
        for name, direction, function in hooks:
            point = bridge.hook_dict[name]
            held = point.fwd_hooks if direction == "fwd" else point.bwd_hooks
            before = list(held)
            alias = [name] if point.name != name else None
            point.add_hook(function, dir=direction, alias_names=alias)
            attached += [(held, handle) for handle in held if handle not in before]
        yield
    finally:
        for held, handle in attached:
            handle.hook.remove()
            held.remove(handle)


def as_array(value: ArrayLike | Tensor) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()
        return value.cpu().numpy()
    return np.asarray(value)
