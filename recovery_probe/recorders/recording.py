"""How recorders take part in training: `Recording` calls them, keeps their rows, and hands these
to the writer when an episode is committed."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recovery_probe import plugins
from recovery_probe.errors import HookError, InputError
from recovery_probe.hooking import hooked, shapes_at
from recovery_probe.interventions.acting import Interventions
from recovery_probe.moments import Episode, Step
from recovery_probe.plugins import AUTHORS, reason
from recovery_probe.record.layout import EPISODE, STEP
from recovery_probe.record.sink import Sink
from recovery_probe.record.store import FULL
from recovery_probe.recorders import Hook, Recorder, Rows
from recovery_probe.recorders.checks import (
    Seal,
    check_layout,
    check_names,
    check_positions,
    fitted,
    misfit,
    untouched,
)
from recovery_probe.settings import Settings
from recovery_probe.training import Training


class _AtWork:
    """A recorder at work: its layout, when it is due, the rows it has given, the time it took."""

    def __init__(self, recorder: Recorder, training: Training) -> None:
        self.recorder, self.name = recorder, recorder.name
        try:
            self.layout = recorder.start(training)
        except (InputError, HookError):
            raise
        except AUTHORS as error:
            raise InputError(
                f"recorder {self.name} cannot start with this model and these settings: "
                f"{reason(error)}; leave it out: --no-record {self.name}"
            ) from error
        check_layout(self.name, self.layout)
        check_positions(self.name, self.layout, training)
        every = {STEP: "step", EPISODE: "episode", **self.layout.every}
        timeline = training.timeline
        since = self.layout.since
        self.due = {d: timeline.due(every[d], d) for d in (STEP, EPISODE)}
        self.due = {d: times[times >= since.get(d, 0)] for d, times in self.due.items()}
        self.steps, self.total = timeline.steps, timeline.total
        self.seconds = 0.0
        self.rows: dict[str, dict[int, Any]] = defaultdict(dict)  # array -> row -> value
        self.given: dict[str, set[int]] = {array: set() for array in self.layout.arrays}

    def overrides(self, moment: str) -> bool:
        return getattr(type(self.recorder), moment) is not getattr(Recorder, moment)

    def row(self, dimension: str, time: int) -> int | None:
        """The row of a time that is due, or for which the recorder is called all the same."""
        due = self.due[dimension]
        row = int(np.searchsorted(due, time, side="right")) - 1
        if row < 0:
            return None
        return row if due[row] == time or self.recorder.sees_every_step else None

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
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            raise HookError(
                f"recorder {self.name} failed at {dimension} {time_}: {reason(error)}"
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
                    f"cannot be read: {reason(error)}"
                ) from error
            if wrong:
                raise HookError(f"recorder {self.name} gave {name!r} {when} {wrong}")
            self.rows[name][row] = copy

    def write(self, writer: Sink) -> None:
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

    def missing(self, start: int, episodes: int) -> dict[str, int]:
        """Array -> rows that were due, from a start after some episodes to an end after others,
        and not given."""
        counts = {}
        for name, array in self.layout.arrays.items():
            due, first, end = self.due[array.time], start and start + 1, episodes + 1
            if array.time == STEP:
                first, end = start * self.steps, episodes * self.steps
            if array.covers == "stretch":  # due at its last step
                due = np.append(due[1:], self.total) - 1
            counts[name] = int(((first <= due) & (due < end)).sum()) - len(self.given[name])
        return {name: count for name, count in counts.items() if count > 0}


class Recording:
    """The recorders of one run. `attached` holds their hooks; the loop calls the moments.

    At the first step of an epoch, and after its last episode, it is checked that no recorder
    changes weights, gradients or activations.
    """

    def __init__(
        self, recorders: Iterable[Recorder], training: Training, interventions: Interventions
    ) -> None:
        self.training, self.interventions = training, list(interventions.edits)
        recorders = list(recorders)
        check_names(recorders)
        _check_passes(recorders, interventions)
        self.at_work = [_AtWork(recorder, training) for recorder in recorders]
        self._check_points()
        self.start = self.done = training.done  # episodes, committed
        self.seal: Seal | None = None  # while it is being checked
        self.token_losses: list[Tensor] = []
        training.join("recorders", self)

    def state(self) -> dict[str, Any]:
        states = {w.name: w.recorder.state() for w in self.at_work}
        return {name: state for name, state in states.items() if state}

    def restore(self, state: dict[str, Any]) -> None:
        for w in self.at_work:
            if w.name in state:
                w.recorder.restore(state[w.name])

    def _check_points(self) -> None:
        """Raise `InputError` for a hook that would never be called."""
        points = {hook.name for w in self.at_work for hook in w.layout.hooks}
        fired = shapes_at(self.training, points) if points else {}
        for w in self.at_work:
            silent = [hook.name for hook in w.layout.hooks if hook.name not in fired]
            if silent:
                more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
                raise InputError(
                    f"recorder {w.name} cannot watch this model: hook point {silent[0]}{more} is "
                    f"not there or never fires; leave it out: --no-record {w.name}"
                )

    def lay_out(self, writer: Sink) -> None:
        """Lay every array out for the whole run, a group for each recorder."""
        for w in self.at_work:
            if w.layout.arrays:
                due = {a.time: w.due[a.time] for a in w.layout.arrays.values()}
                settings = plugins.settings_of(w.recorder)
                writer.add_group(w.name, w.layout.arrays, w.layout.coords, due, settings)

    def sizes(self) -> dict[str, dict[str, tuple[tuple[int, ...], int]]]:
        """Recorder -> array -> shape and bytes, uncompressed; `files` beside the record."""
        sizes: dict[str, dict[str, tuple[tuple[int, ...], int]]] = {}
        for w in self.at_work:
            arrays = {}
            for name, a in w.layout.arrays.items():
                shape = (len(w.due[a.time]), *a.shape)
                arrays[name] = (shape, int(np.prod(shape)) * np.dtype(a.dtype).itemsize)
            if w.layout.files:
                arrays["files"] = ((), w.layout.files)
            sizes[w.name] = arrays
        return sizes

    def rehearse(self, stop: int | None = None) -> dict[str, tuple[float, int, str]]:
        """Recorder -> seconds of work of one call, the better of two tries when they are short;
        the number of calls from here on, until `stop` episodes are done; and whether a call is for
        a step or for an episode."""
        costs, M, done = {}, self.training.timeline.steps, self.training.done
        stop = self.training.timeline.episodes if stop is None else stop
        for w in self.at_work:
            tries: list[float] = []
            while len(tries) < 2 and sum(tries) < 1:
                start = clock(self.training.model.device)
                try:
                    parts = w.recorder.rehearse() or 1.0
                except AUTHORS as error:
                    raise InputError(
                        f"recorder {w.name} failed in its rehearsal: {reason(error)}"
                    ) from error
                tries.append((clock(self.training.model.device) - start) * parts)
            each = STEP if any(a.time == STEP for a in w.layout.arrays.values()) else EPISODE
            first, end = (done * M, stop * M) if each == STEP else (done + (done > 0), stop + 1)
            count = int(((first <= w.due[each]) & (w.due[each] < end)).sum())
            costs[w.name] = (min(tries), count, each)
        return costs

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place; gone when it ends, also after an error."""
        hooks = [(w, hook) for w in self.at_work for hook in w.layout.hooks]
        watching = [(hook.name, "fwd", self._watch(w, hook)) for w, hook in hooks]
        with hooked(self.training.model.bridge, watching):
            yield

    def _watch(self, w: _AtWork, asked: Hook) -> Callable[..., None]:
        def watching(tensor: Tensor, *, hook: Any) -> None:
            moment = self.training.passing
            if isinstance(moment, Step) and asked.during == "training":
                dimension, when = STEP, moment.index
            elif isinstance(moment, range) and asked.during == "evaluation":
                dimension, when = EPISODE, self.training.done
            else:
                return

            def changed() -> str:
                return (
                    f"recorder {w.name} changed the activation at {hook.name} in place, at "
                    f"{dimension} {when}; work on a copy (tensor.clone())"
                )

            with untouched(tensor, changed, values=self.seal is not None):
                w.take(partial(asked.function, tensor, hook=hook, moment=moment), dimension, when)

        return watching

    def before_step(self, step: Step) -> None:
        first = step.index % self.training.timeline.steps == 0
        self._put_seal(first and self.training.timeline.begins_epoch(step.episode))
        self._each("before_step", STEP, step.index, step)

    def after_backward(self, step: Step) -> None:
        if self.seal is not None:
            hooks = [f"a hook of recorder {w.name}" for w in self.at_work if w.layout.hooks]
            acting = [f"intervention {name}" for name in self.interventions]
            self.seal.check(" or ".join([*hooks, *acting]), f"step {step.index}")
            self._put_seal(True, gradients=True)
        self._each("after_backward", STEP, step.index, step)

    def after_step(self, step: Step) -> None:
        self._put_seal(self.seal is not None)
        self._each("after_step", STEP, step.index, step)
        self._put_seal(False)

    def after_episode(self, done: int) -> None:
        token_losses = torch.cat(self.token_losses)
        self._put_seal(self.training.timeline.begins_epoch(done))
        self.episode = Episode(done, self.training.model, token_losses)
        self._each("after_episode", EPISODE, done, self.episode)
        self._put_seal(False)

    def evaluated(self, start: int, token_losses: Tensor, mask: Tensor) -> None:
        """(batch, C), (batch, C): what an evaluation of the documents from `start` on found, and
        where they are real."""
        predicted = mask.clone()
        predicted[:, 0] = False
        before = self.token_losses if start else []
        self.token_losses = [*before, token_losses.where(predicted, torch.nan)]

    def _put_seal(self, checking: bool, gradients: bool = False) -> None:
        parameters = self.training.model.parameters
        self.seal = Seal(parameters, gradients) if checking and self.at_work else None

    def _each(self, moment: str, dimension: str, when: int, context: Step | Episode) -> None:
        for w in self.at_work:
            if not w.overrides(moment):
                continue
            w.take(partial(getattr(w.recorder, moment), context), dimension, when)
            if self.seal is not None:
                self.seal.check(f"recorder {w.name}", f"{dimension} {when}")

    def commit(self, writer: Sink) -> None:
        """Write the rows that have come in since the last commit."""
        for w in self.at_work:
            w.write(writer)

    def committed(self) -> None:
        """The episode counts: say so."""
        self.done = self.training.done
        self._each("committed", EPISODE, self.done, self.episode)

    def conclude(self) -> None:
        """Raise `HookError` for an array that was laid out and has no row, where all the run was
        seen and some were due."""
        for w in [] if self.start else self.at_work:
            missing = w.missing(self.start, self.training.done)
            for name, given in w.given.items():
                if not given and missing.get(name):
                    raise HookError(f"recorder {w.name} gave no row of {name!r} in the whole run")

    def finish(self, seconds: float) -> dict[str, Any]:
        """Facts for the provenance: what each recorder cost, what it says itself, and how many
        rows that were due it did not give, by array."""
        said = {}
        for w in self.at_work:
            try:
                facts = dict(w.recorder.finish())
                facts = json.loads(json.dumps(facts, default=lambda value: value.item()))
            except AUTHORS as error:
                facts = {"error": f"finish failed: {reason(error)}"}
                print(f"recorder {w.name}: {facts['error']}", file=sys.stderr)
            said[w.name] = facts | {
                "seconds": round(w.seconds, 3),
                "share": round(w.seconds / seconds, 4) if seconds else None,
            }
            missing = w.missing(self.start, self.done)
            if missing:
                said[w.name]["rows_missing"] = missing
        return {"recorders": said}


def find(settings: Settings) -> list[Recorder]:
    """The recorders that the settings name, through the plug-in door."""
    return [
        plugins.made(
            plugins.find("recorders", spec),
            settings.tables.get(plugins.key_of(spec), {}),
            plugins.key_of(spec),
        )
        for spec in settings.recorders
    ]


def _check_passes(recorders: Iterable[Recorder], interventions: Interventions) -> None:
    """Raise `InputError` for numbers of another network than the one that is trained."""
    editing = interventions.editing
    for recorder in recorders:
        if editing and recorder.makes_passes:
            raise InputError(
                f"intervention {editing[0]} changes activations, and recorder {recorder.name} "
                "makes passes of its own, without that: what it records would be of another "
                f"network; leave it out: --no-record {recorder.name}"
            )


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


def as_array(value: ArrayLike | Tensor) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()
        return value.cpu().numpy()
    return np.asarray(value)
