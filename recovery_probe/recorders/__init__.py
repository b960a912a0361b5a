"""What a recorder is, and how recorders take part in training.

A recorder watches training and writes named arrays. It says beforehand what it will write, then
gets one read-only `Step` or `Episode` at each moment, and returns named rows or nothing:

    start(run) -> Layout      before_step(step)     after_backward(step)     after_step(step)
    after_episode(episode)    finish() -> facts for the provenance

`after_episode` is also called once before training, with `done = 0`. Forward hooks that it asks
for in its layout see the training passes, or the evaluations, and return rows in the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recovery_probe.config import Settings
from recovery_probe.errors import InputError

if TYPE_CHECKING:
    from recovery_probe.models import Model
    from recovery_probe.sketch import ModuleSketches

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
    # (T + H, C), nats: the loss of the token at each position given those before it; NaN at
    # position 0 and past a document's end
    token_losses: Tensor


@dataclass(frozen=True)
class Array:
    """An array that a recorder will fill, one row along time after the other."""

    time: Time
    dims: tuple[str, ...]  # of a row
    shape: tuple[int, ...]  # of a row
    description: str
    units: str = "1"
    dtype: str = "float32"  # or an integer or bool: then every due row must come
    # A row is of its moment, or of the stretch from there to the next row: then it counts only
    # once the stretch has ended.
    covers: Literal["moment", "stretch"] = "moment"


@dataclass(frozen=True)
class Hook:
    """A forward hook: `function(tensor, *, hook, moment)`, where `moment` is the `Step`, or for an
    evaluation the range of documents in the batch. Whatever it returns is recorded, never put in
    place of the tensor, unless `edits`."""

    name: str  # of the hook point
    function: Callable[..., Rows | Tensor]
    during: Literal["training", "evaluation"] = "training"
    edits: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything a recorder will write and where it looks."""

    arrays: dict[str, Array] = field(default_factory=dict)
    # name -> dimension or dimensions, values
    coords: dict[str, tuple[str | tuple[str, ...], Any]] = field(default_factory=dict)
    # Time dimension -> how often, as `times` reads it; every step and every episode when not said.
    every: dict[str, str] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    files: int = 0  # bytes written beside the record


class Recorder:
    """The base of every recorder: override `start` and the moments you need."""

    name: str
    # Called at every step and episode, due or not, by a recorder that adds something up between
    # due ones.
    sees_every_step = False

    def __str__(self) -> str:
        return self.name

    def start(self, run: RunInfo) -> Layout:
        """Say what will be written. Raises `InputError` when the run cannot be recorded so."""
        raise NotImplementedError

    def rehearse(self) -> float | None:
        """Do the work of one call on stand-in data, timed before training to tell its share; or
        do a part of it, and return how many such parts a call has."""

    def before_step(self, step: Step) -> Rows:
        """Before the forward pass."""

    def after_backward(self, step: Step) -> Rows:
        """Gradients are there; weights have not moved."""

    def after_step(self, step: Step) -> Rows:
        """Weights have moved; gradients are still there."""

    def after_episode(self, episode: Episode) -> Rows:
        """All documents have been evaluated."""

    def finish(self) -> dict[str, Any]:
        """Facts for the provenance, as JSON can hold them. `seconds`, `share` and `rows_missing`
        are said by others."""
        return {}


class Points:
    """One row from many hook points, or other places: in the order of `keys`, whatever order they
    come in, and NaN where one gave nothing."""

    def __init__(self, keys: Iterable[Hashable]) -> None:
        self.keys = list(keys)
        self.values: dict[Hashable, Tensor] = {}

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep a copy: the network may go on to change what it showed."""
        self.values[key] = value.detach().clone()

    def row(self) -> Tensor | None:
        """(keys, …) of what came in since the last row; None for nothing at all."""
        if not self.values:
            return None
        blank = torch.full_like(next(iter(self.values.values())), math.nan)
        row = torch.stack([self.values.get(key, blank) for key in self.keys])
        self.values = {}
        return row

    def rows(self, name: str) -> Rows:
        """The row as what a recorder's moment returns."""
        row = self.row()
        return None if row is None else {name: row}


def module_coords(
    modules: Sequence[str],
) -> dict[str, tuple[str | tuple[str, ...], Any]]:
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

    `every` is `step`, `N steps`, `episode`, `N episodes`, `epoch` or `N epochs`. Steps are the
    first of their period; episodes done start at 0. Raises `InputError` for anything else.
    """
    T, E, M = settings.documents.count, settings.epochs, settings.steps
    match = re.fullmatch(r"(?:(\d{1,9}) )?(step|episode|epoch)s?", every)
    count = int(match[1] or 1) if match else 0
    if not match or not count or (time == EPISODE and match[2] == "step"):
        raise InputError(
            f"every = {every!r}: expected "
            + ("" if time == EPISODE else "'step', '5 steps', ")
            + "'episode', '5 episodes', 'epoch' or '2 epochs'"
        )
    if time == STEP:
        return np.arange(0, E * T * M, count * {"step": 1, "episode": M, "epoch": M * T}[match[2]])
    return np.arange(0, E * T + 1, count * {"episode": 1, "epoch": T}[match[2]])


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


@torch.no_grad()
def shapes_at(
    run: RunInfo, points: Iterable[str], documents: int = 1
) -> dict[str, tuple[int, ...]]:
    """Hook point -> shape of the tensor there, of those that a pass over the first documents
    reaches: an architecture may have points that never fire."""
    shapes: dict[str, tuple[int, ...]] = {}

    def see(tensor: Any, *, hook: Any) -> None:
        shapes[hook.name] = tuple(getattr(tensor, "shape", ()))

    known = [point for point in dict.fromkeys(points) if point in run.model.bridge.hook_dict]
    run.model.train(False)
    with hooked(run.model.bridge, [(point, "fwd", see) for point in known]):
        run.model.bridge(run.tokens[:documents], use_cache=False)
    return {point: shapes[point] for point in known if point in shapes}


def as_array(value: ArrayLike | Tensor) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()
        return value.cpu().numpy()
    return np.asarray(value)
