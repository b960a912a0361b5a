"""How recorders take part in training: `Recording` calls them, keeps their rows, and hands these
to the writer when an episode is committed."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recovery_probe import plugins
from recovery_probe.config import Settings
from recovery_probe.errors import HookError, InputError
from recovery_probe.recorders import (
    EPISODE,
    STEP,
    Episode,
    Hook,
    Recorder,
    Rows,
    RunInfo,
    Step,
    as_array,
    hooked,
    shapes_at,
    times,
)
from recovery_probe.recorders.checks import (
    Watch,
    check_layout,
    check_names,
    fitted,
    misfit,
    untouched,
)

if TYPE_CHECKING:
    from recovery_probe.writer import Writer

AUTHORS = (Exception, SystemExit)  # what a recorder may raise, whoever wrote it


class _Watched:
    """A recorder at work: its layout, when it is due, the rows it has given, the time it took."""

    def __init__(self, recorder: Recorder, info: RunInfo) -> None:
        self.recorder, self.name = recorder, recorder.name
        try:
            self.layout = recorder.start(info)
        except (InputError, HookError):
            raise
        except AUTHORS as error:
            raise InputError(
                f"recorder {self.name} cannot start with this model and these settings: "
                f"{_told(error)}; leave it out: --no-record {self.name}"
            ) from error
        check_layout(self.name, self.layout)
        every = {STEP: "step", EPISODE: "episode", **self.layout.every}
        self.due = {d: times(every[d], info.settings, d) for d in (STEP, EPISODE)}
        self.steps = info.settings.steps  # M
        self.total = len(info.schedule) * self.steps
        self.seconds = 0.0
        self.rows: dict[str, dict[int, Any]] = defaultdict(dict)  # array -> row -> value
        self.given: dict[str, set[int]] = {array: set() for array in self.layout.arrays}

    def overrides(self, moment: str) -> bool:
        return getattr(type(self.recorder), moment) is not getattr(Recorder, moment)

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
            rows = moment()
        except HookError:
            raise
        except AUTHORS as error:
            raise HookError(
                f"recorder {self.name} failed at {dimension} {time_}: {_told(error)}"
            ) from error
        if rows is not None:
            self._keep(rows, row, f"at {dimension} {time_}")
        self.seconds += time.perf_counter() - start

    def _keep(self, rows: Any, row: int, when: str) -> None:
        if not isinstance(rows, Mapping):
            raise HookError(
                f"recorder {self.name} gave a {type(rows).__name__} {when}; expected array name -> "
                "row, or None"
            )
        for name, value in rows.items():
            array = self.layout.arrays.get(name)
            try:
                wrong = misfit(value, array) if array else f"; one of {list(self.layout.arrays)}"
                copy = value.detach().clone() if isinstance(value, Tensor) else np.array(value)
            except AUTHORS as error:
                raise HookError(
                    f"recorder {self.name} gave {name!r} {when} as a {type(value).__name__} that "
                    f"cannot be read: {_told(error)}"
                ) from error
            if wrong:
                raise HookError(f"recorder {self.name} gave {name!r} {when} {wrong}")
            self.rows[name][row] = copy

    def write(self, writer: Writer) -> None:
        """Hand over the rows that have come in, each to its own place."""
        start = time.perf_counter()
        for name, rows in self.rows.items():
            indices = np.array(sorted(rows))
            values = fitted(stacked([rows[i] for i in indices]), self.layout.arrays[name])
            if values is None:
                raise HookError(
                    f"recorder {self.name} gave values of {name!r} that "
                    f"{self.layout.arrays[name].dtype} cannot hold; say another dtype in its Array"
                )
            breaks = np.flatnonzero(np.diff(indices) != 1) + 1
            for stretch in np.split(np.arange(len(indices)), breaks):
                writer.write(self.name, name, int(indices[stretch[0]]), values[stretch])
            self.given[name].update(rows)
        self.rows.clear()
        self.seconds += time.perf_counter() - start

    def missing(self, episodes: int) -> dict[str, int]:
        """Array -> rows that were due after that many episodes, and not given."""
        counts = {}
        for name, array in self.layout.arrays.items():
            due, end = self.due[array.time], episodes + 1
            if array.time == STEP:
                end = episodes * self.steps
            if array.covers == "stretch":  # due at its last step
                due = np.append(due[1:], self.total) - 1
            counts[name] = int((due < end).sum()) - len(self.given[name])
        return {name: count for name, count in counts.items() if count > 0}


class Recording:
    """The recorders of one run. `attached` holds their hooks; the loop calls the moments.

    At the first step of an epoch, and after its last episode, it is checked that no recorder
    changes weights, gradients or activations.
    """

    def __init__(self, recorders: Iterable[Recorder], info: RunInfo) -> None:
        self.info = info
        recorders = list(recorders)
        check_names(recorders)
        self.watched = [_Watched(recorder, info) for recorder in recorders]
        self._check_points()
        self._check_edits()
        self.moment: Step | range | None = None  # of the forward pass that is under way
        self.done = 0  # episodes, while evaluating
        self.committed = 0  # episodes
        self.watch: Watch | None = None  # while it is being checked
        self.token_losses: list[Tensor] = []

    def _check_points(self) -> None:
        """Raise `InputError` for a hook that would never be called."""
        wanted = {hook.name for w in self.watched for hook in w.layout.hooks}
        fired = shapes_at(self.info, wanted) if wanted else {}
        for w in self.watched:
            silent = [hook.name for hook in w.layout.hooks if hook.name not in fired]
            if silent:
                more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
                raise InputError(
                    f"recorder {w.name} cannot watch this model: hook point {silent[0]}{more} is "
                    f"not there or never fires; leave it out: --no-record {w.name}"
                )

    def _check_edits(self) -> None:
        """Raise `InputError` for gradients of another network than the one that is trained."""
        edits = [w.name for w in self.watched if any(hook.edits for hook in w.layout.hooks)]
        if edits and any(w.name == "document_gradients" for w in self.watched):
            raise InputError(
                f"hook {edits[0]} may edit, and recorder document_gradients makes a pass of its "
                "own, without the edit: its gradients would be of another network; leave it out: "
                "--no-record document_gradients"
            )

    def lay_out(self, writer: Writer) -> None:
        """Lay every array out for the whole run, a group for each recorder."""
        for w in self.watched:
            if w.layout.arrays:
                due = {a.time: w.due[a.time] for a in w.layout.arrays.values()}
                writer.add_group(w.name, w.layout.arrays, w.layout.coords, due)

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
            told[w.name] = arrays
        return told

    def rehearse(self) -> dict[str, tuple[float, int, str]]:
        """Recorder -> seconds of work of one call, the better of two tries when they are short;
        the number of calls in the run; and whether a call is for a step or for an episode."""
        told = {}
        for w in self.watched:
            tries: list[float] = []
            while len(tries) < 2 and sum(tries) < 1:
                start = clock(self.info.model.device)
                try:
                    parts = w.recorder.rehearse() or 1.0
                except AUTHORS as error:
                    raise InputError(
                        f"recorder {w.name} failed in its rehearsal: {_told(error)}"
                    ) from error
                tries.append((clock(self.info.model.device) - start) * parts)
            time_ = STEP if any(a.time == STEP for a in w.layout.arrays.values()) else EPISODE
            told[w.name] = (min(tries), len(w.due[time_]), time_)
        return told

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place; gone when it ends, also after an error."""
        hooks = [(w, hook) for w in self.watched for hook in w.layout.hooks]
        watching = [(hook.name, "fwd", self._watch(w, hook)) for w, hook in hooks]
        with hooked(self.info.model.bridge, watching):
            yield

    def _watch(self, w: _Watched, wanted: Hook) -> Callable[..., Tensor | None]:
        def watching(tensor: Tensor, *, hook: Any) -> Tensor | None:
            moment = self.moment
            if isinstance(moment, Step) and wanted.during == "training":
                dimension, when = STEP, moment.index
            elif isinstance(moment, range) and wanted.during == "evaluation":
                dimension, when = EPISODE, self.done
            else:
                return None
            edited: list[Tensor] = []

            def call() -> Any:
                found = wanted.function(tensor, hook=hook, moment=moment)
                if wanted.edits and isinstance(found, Tensor):
                    edited.append(found)
                    return None
                return found

            told = (
                f"recorder {w.name} changed the activation at {hook.name} in place, at {dimension} "
                f"{when}; work on a copy (tensor.clone())"
            )
            quiet = untouched(tensor, told, values=self.watch is not None)
            with nullcontext() if wanted.edits else quiet:
                w.take(call, dimension, when)
            return edited[0] if edited else None

        return watching

    def before_step(self, step: Step) -> None:
        epoch = self.info.settings.documents.count * self.info.settings.steps
        self._start_watch(step.index % epoch == 0)
        self._each("before_step", STEP, step.index, step)
        self.moment = step  # not before: a recorder may send something through the model itself

    def after_backward(self, step: Step) -> None:
        self.moment = None
        if self.watch is not None:
            hooks = [w.name for w in self.watched if w.layout.hooks]
            self.watch.check(f"a hook of recorder {' or '.join(hooks)}", f"step {step.index}")
            self._start_watch(True, gradients=True)
        self._each("after_backward", STEP, step.index, step)

    def after_step(self, step: Step) -> None:
        self._start_watch(self.watch is not None)
        self._each("after_step", STEP, step.index, step)
        self._start_watch(False)

    def after_episode(self, done: int) -> None:
        self.moment = None
        token_losses = torch.cat(self.token_losses)
        self._start_watch(done % self.info.settings.documents.count == 0)
        episode = Episode(done, self.info.model, token_losses)
        self._each("after_episode", EPISODE, done, episode)
        self._start_watch(False)

    def evaluating(self, documents: range, done: int) -> None:
        """The next forward pass evaluates these documents, after `done` episodes."""
        if documents.start == 0:
            self.token_losses = []
        self.moment, self.done = documents, done

    def evaluated(self, token_losses: Tensor) -> None:
        """(batch, C): what that pass found, as `Episode.token_losses` has it."""
        self.token_losses.append(token_losses)

    def _start_watch(self, wanted: bool, gradients: bool = False) -> None:
        parameters = self.info.model.parameters
        self.watch = Watch(parameters, gradients) if wanted and self.watched else None

    def _each(self, moment: str, dimension: str, when: int, context: Step | Episode) -> None:
        for w in self.watched:
            if not w.overrides(moment):
                continue
            w.take(partial(getattr(w.recorder, moment), context), dimension, when)
            if self.watch is not None:
                self.watch.check(f"recorder {w.name}", f"{dimension} {when}")

    def commit(self, writer: Writer) -> None:
        """Write the rows that have come in since the last commit."""
        for w in self.watched:
            w.write(writer)
        self.committed = self.done

    def conclude(self) -> None:
        """Raise `HookError` for an array that was laid out and has no row, in a whole run."""
        for w in self.watched:
            for name, given in w.given.items():
                if not given:
                    raise HookError(f"recorder {w.name} gave no row of {name!r} in the whole run")

    def finish(self, seconds: float) -> dict[str, Any]:
        """Facts for the provenance: what each recorder cost, what it says itself, and how many
        rows that were due it did not give, by array."""
        told = {}
        for w in self.watched:
            try:
                facts = dict(w.recorder.finish())
                facts = json.loads(json.dumps(facts, default=lambda value: value.item()))
            except AUTHORS as error:
                facts = {"error": f"finish failed: {_told(error)}"}
                print(f"recorder {w.name}: {facts['error']}", file=sys.stderr)
            told[w.name] = facts | {
                "seconds": round(w.seconds, 3),
                "share": round(w.seconds / seconds, 4) if seconds else None,
            }
            missing = w.missing(self.committed)
            if missing:
                told[w.name]["rows_missing"] = missing
        return {"recorders": told}


def find(settings: Settings) -> list[Recorder]:
    """The recorders that the settings name, through the plug-in door."""
    found = [plugins.find("recorders", name, type) for name in settings.recorders]
    for name, kind in zip(settings.recorders, found, strict=True):
        if not issubclass(kind, Recorder):
            raise InputError(f"{name}: {kind.__name__} is not a Recorder")
    return [made(kind) for kind in found]


def made(kind: type[Recorder]) -> Recorder:
    """A recorder of a class. Raises `InputError` where that needs more than the class."""
    try:
        return kind()
    except AUTHORS as error:
        raise InputError(f"recorder {kind.__name__} cannot be made: {_told(error)}") from error


def clock(device: torch.device) -> float:
    """Seconds, once a device has done what it was given: a GPU works while Python goes on. The
    times of single moments are not waited for: they are the host's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def stacked(values: list[Any]) -> NDArray[Any]:
    """Rows as one array; from a device in one go."""
    kinds = {(v.device, v.dtype) if isinstance(v, Tensor) else None for v in values}
    if len(kinds) == 1 and None not in kinds:
        return as_array(torch.stack(values))
    return np.stack([as_array(v) for v in values])


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
