"""What is trained, and how far it is."""

from __future__ import annotations

import errno
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recovery_probe import config, documents, models, packing, stats
from recovery_probe.documents import Documents, arrange
from recovery_probe.documents.recorded import check_tokens, recorded, with_more
from recovery_probe.errors import InputError, Missing
from recovery_probe.models import Model
from recovery_probe.moments import Step
from recovery_probe.optimizers import Optimizer
from recovery_probe.record import checkpoint, store
from recovery_probe.record.folder import checkpoint_folder
from recovery_probe.record.layout import Timeline
from recovery_probe.record.origin import first, origin
from recovery_probe.record.run import Run
from recovery_probe.schedules import planned
from recovery_probe.seeds import generator, torch_seed
from recovery_probe.settings import Settings
from recovery_probe.sketch import ModuleSketches


class Part(Protocol):
    """What takes part in training, and may remember something from one episode to the next."""

    def state(self) -> dict[str, Any]:
        """What it remembers: a tree that `packing` takes."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remember that instead."""


@dataclass
class Training:
    """Settings made into things, and the episodes that they have behind them.

    A run is one of these, advanced by the loop. `Training.open` starts one; `Training.at` takes
    one up from a run's checkpoint: to go on, to see again what was not recorded, to do something
    else from there. Random numbers are no part of its state: whatever draws some does so from the
    seed and the episode, or the step, that they are for.
    """

    settings: Settings
    model: Model
    documents: Documents
    timeline: Timeline
    inputs: dict[str, Tensor]  # name -> (T + H, …), on the model's device
    rows: stats.Floats  # (episodes + 1, T + H): losses after each episode, NaN before
    done: int = 0  # episodes
    path: Path | None = None  # where the run is written
    # The documents that are passing through the model as a part of training: of a step, or of an
    # evaluation. None otherwise: hooks of the run let other passes alone.
    passing: Step | range | None = field(default=None, init=False)
    # The latest checkpoint: the one that this was taken up from, or has written since.
    latest: Path | None = field(default=None, init=False)
    # Somebody asked it to stop: it does after an episode, with a checkpoint.
    stopping: bool = field(default=False, init=False)
    # Recorders and interventions at work; and what they remembered at the checkpoint that this was
    # taken up from, until they join.
    parts: dict[str, Part] = field(default_factory=dict, init=False)
    # Of a run that began with another's checkpoint: the state that its optimizer began with, and
    # (T + H,) losses before any training.
    beginning: dict[str, Any] | None = field(default=None, init=False)
    untrained: stats.Floats | None = field(default=None, init=False)
    _left: dict[str, Any] = field(default_factory=dict, init=False)

    @classmethod
    def open(cls, settings: Settings, path: Path | None = None) -> Self:
        """The beginning of a run. Raises `InputError` when the settings cannot be met."""
        model = models.load(settings)
        chosen = documents.load(settings, model.tokenize)
        check_tokens(chosen, model.vocabulary, settings)
        return cls._of(settings, model, chosen, planned(settings), path)

    @classmethod
    def at(cls, run: Run, episodes_done: int, device: str | None = None) -> Self:
        """A run as it was after so many episodes, of which there is a checkpoint: its weights, its
        documents as recorded, its schedule and losses so far, its optimizer. On the best device of
        this machine, or the one that is named, whatever it was trained on.

        Raises `Missing` when there is no such checkpoint, or the record has not got so far;
        `Damaged` when it is not as it was written.
        """
        if episodes_done > run.episodes_done:
            raise Missing(
                f"{run.path}: {run.episodes_done} episodes are committed, and not {episodes_done}"
            )
        model = run.saved_model(episodes_done, device or "auto")
        training = cls._of(run.config, model, recorded(run), run.timeline, run.path)
        training.rows[: episodes_done + 1] = run.losses.values[: episodes_done + 1]
        training.done = episodes_done
        training.latest = checkpoint_folder(run.path, episodes_done)
        training._take_up(training.latest)
        return training

    @classmethod
    def begun(
        cls,
        settings: Settings,
        other: Run,
        episodes_done: int,
        path: Path | None = None,
        device: str | None = None,
    ) -> Self:
        """A run that begins with another one's checkpoint: its weights, its documents, and more of
        them where the settings ask for more, what its optimizer remembers. Its episodes, and with
        them what is drawn for them, are counted from there.

        Raises `Missing` when there is no such checkpoint, `Damaged` when it is not as it was
        written, `InputError` when the settings choose other documents.
        """
        model = other.saved_model(episodes_done, device or settings.device)
        known = recorded(other)
        if settings.documents != other.config.documents:
            known = with_more(known, settings, model.tokenize, other)
        training = cls._of(settings, model, known, planned(settings), path)
        training._take_up(checkpoint_folder(other.path, episodes_done))
        training._left = {}  # what recorders remember is of the other's episodes
        training.beginning = _copied(training.optimizer.state_dict())
        trained = other.config.documents.count
        training.untrained = np.full(len(known), np.nan)
        training.untrained[:trained] = first(other).losses.values[0, :trained]
        return training

    @classmethod
    def again(cls, run: Run, device: str | None = None, epochs: int | None = None) -> Self:
        """The beginning of a run once more, with its documents as recorded; of more epochs than it
        had, when these are given. Raises `InputError` when its model cannot be loaded, or its
        schedule would not begin with what it was."""
        settings, timeline = run.config, run.timeline
        if epochs is not None:
            settings = replace(settings, epochs=epochs)
            timeline = planned(settings)
            if settings.optimizer.decay != "none":
                raise InputError(
                    f"{run.path}: its learning rate falls to 0 at the end of {run.config.epochs} "
                    "epochs (optimizer.decay), and at the end of more would be another from the "
                    "start: train anew"
                )
            if not np.array_equal(timeline.schedule[: run.schedule.size], run.schedule):
                raise InputError(
                    f"{run.path}: {epochs} epochs of the schedule {settings.schedule.kind} do not "
                    f"begin with the {run.config.epochs} that it has: train anew"
                )
        if began := origin(run):
            training = cls.begun(settings, *began, run.path, device)
            if training.model.digest() != run.provenance["weights"]:
                raise InputError(
                    f"{run.path}: began with a checkpoint of {began[0].path}, where there are "
                    "other weights now: train anew"
                )
            return training
        model = models.load(settings if device is None else replace(settings, device=device))
        training = cls._of(settings, model, recorded(run), timeline, run.path)
        if run.provenance.get("role") == "twin":
            training.move_last_digits()
        return training

    def _take_up(self, folder: Path) -> None:
        """What a checkpoint has beside weights: of the optimizer at once, of others when they
        join. Checkpoints of earlier versions have nothing."""
        if not (folder / checkpoint.STATE).exists():
            return
        tree = checkpoint.state(folder).get("state")
        with store.reading(folder):
            file = folder / checkpoint.TENSORS
            tensors = load_file(file) if file.exists() else {}
            state = packing.unpacked(tree, tensors)
        self.optimizer.load_state_dict(state["optimizer"])
        self._left = state["parts"]

    def join(self, name: str, part: Part) -> None:
        """Take part from now on, with what it had at the checkpoint this was taken up from."""
        self.parts[name] = part
        if name in self._left:
            part.restore(self._left.pop(name))

    def save(self) -> None:
        """Write a checkpoint of the run: its weights, and all else it needs to go on from here."""

        def fill(folder: Path) -> dict[str, Any]:
            if self.latest is None:
                self.model.save(folder)
            else:  # a configuration that was read from a file is written as another
                self.model.save_weights(folder)
                checkpoint.copy_rest(self.latest, folder)
            tensors: dict[str, Tensor] = {}
            remembered = {"optimizer": self.optimizer.state_dict(), "parts": self._remembered()}
            tree = packing.packed(remembered, tensors)
            if tensors:
                save_file(tensors, folder / checkpoint.TENSORS)
            return {"state": tree}

        assert self.path is not None
        try:
            checkpoint.put(self.path, self.done, fill)
        except SafetensorError as error:
            if "os error 28" in str(error):  # as other libraries say it
                raise OSError(errno.ENOSPC, "the disk is full", str(self.path)) from error
            raise
        self.latest = checkpoint_folder(self.path, self.done)

    def _remembered(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self.parts.items()}

    @classmethod
    def _of(
        cls,
        settings: Settings,
        model: Model,
        documents: Documents,
        timeline: Timeline,
        path: Path | None,
    ) -> Self:
        inputs = {n: torch.tensor(v).to(model.device) for n, v in documents.inputs.items()}
        rows = np.full((timeline.episodes + 1, len(documents)), np.nan)
        return cls(settings, model, documents, timeline, inputs, rows, path=path)

    @torch.no_grad()
    def move_last_digits(self) -> None:
        """Change every weight by one unit in its last place, up or down at random: what two runs
        then differ in is below what their numbers mean."""
        draws = torch.Generator().manual_seed(torch_seed(self.settings.seed.weights, "twin"))
        for weight in self.model.parameters.values():
            up = torch.rand(weight.shape, generator=draws) < 0.5
            towards = torch.where(up, torch.inf, -torch.inf).to(weight)
            weight.copy_(torch.nextafter(weight, towards))

    @functools.cached_property
    def sketches(self) -> ModuleSketches:
        """Shared by all who sketch gradients or weights, so that none is sketched twice."""
        return ModuleSketches(self.model.parameters, self.settings.sketch)

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The run's optimizer, in the state that it has got to."""
        chosen: Optimizer = config.made(self.settings, "optimizer")
        try:
            made = chosen.make(list(self.model.parameters.values()))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"optimizer {chosen.name} cannot be made: {error}") from error
        if self._rate_is_set:
            for group in made.param_groups:
                if "lr" not in group or "initial_lr" in group:  # torch's schedules put it there
                    raise InputError(
                        f"optimizer {chosen.name} has rates of its own: leave optimizer.per at "
                        "'step' and optimizer.decay at 'none'"
                    )
                group["initial_lr"] = group["lr"]
        return made

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Start the optimizer again, without what it remembers."""
        self.__dict__.pop("optimizer", None)
        return self.optimizer

    def first_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer as the run begins: fresh, or as it was at the checkpoint it begins with."""
        made = self.fresh_optimizer()
        if self.beginning is not None:
            made.load_state_dict(_copied(self.beginning))
        return made

    def batch(self, which: slice) -> dict[str, Tensor]:
        """Name -> (documents, …): the inputs of some documents."""
        return {name: values[which] for name, values in self.inputs.items()}

    def losses(self, which: slice) -> Tensor:
        """(documents,): the mean loss of each of some documents, nats, in the mode the model is
        in (`model.train(…)`)."""
        return self.model.losses(self.batch(which))

    def steps(self, episode: int) -> Iterator[Step]:
        """The gradient steps of an episode of the schedule."""
        document = int(self.timeline.schedule[episode])
        if self.settings.optimizer.reset == "epoch" and self.timeline.begins_epoch(episode):
            self.fresh_optimizer()
        return self.steps_on(document, f"dropout of episode {episode}", episode)

    def steps_on(self, document: int, purpose: str, episode: int) -> Iterator[Step]:
        """M gradient steps on a document, which the caller takes: the model in training mode,
        dropout under the seed of a `purpose`, the optimizer fresh where settings ask for that, and
        at the rate of the steps of an `episode`."""
        torch.manual_seed(torch_seed(self.settings.seed.order, purpose))
        if self.settings.optimizer.reset == "episode":
            self.fresh_optimizer()
        inputs = self.batch(slice(document, document + 1))
        length = int(self.documents.lengths[document])
        each = list(self._shown_of(inputs, length, purpose))
        self.model.train()
        for m in range(self.settings.steps):
            index = episode * self.settings.steps + m
            self._set_rate(index)
            yield Step(index, episode, document, each[m], length, self.model)

    def _shown_of(
        self, inputs: dict[str, Tensor], length: int, purpose: str
    ) -> Iterator[dict[str, Tensor]]:
        """A document's inputs at each of M steps: cut to its tokens, or a window onto more."""
        part, steps = self.settings.documents, self.settings.steps
        if part.window == "none":
            if part.padding == "none":
                inputs = {name: values[:, :length] for name, values in inputs.items()}
            yield from [inputs] * steps
            return
        rng = generator(self.settings.seed.order, f"window, {purpose}")
        for start in arrange.offsets(part.tokens, part.window, steps, rng):
            yield arrange.cut(inputs, start, part.tokens)

    @property
    def _rate_is_set(self) -> bool:
        """Whether the learning rate of a step is another than the optimizer was made with."""
        wanted = self.settings.optimizer
        return wanted.per != "step" or wanted.decay != "none"

    def _set_rate(self, step: int) -> None:
        """The learning rate of a step, from its index alone: lr, or lr / M, times
        ½ (1 + cos(π · step / steps of the run))."""
        if not self._rate_is_set:
            return
        falling = (1 + math.cos(math.pi * step / self.timeline.total)) / 2
        factor = falling if self.settings.optimizer.decay == "cosine" else 1.0
        sharing = self.settings.steps if self.settings.optimizer.per == "episode" else 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] / sharing * factor

    @torch.no_grad()
    def evaluate(self, see: Callable[[int, Tensor, Tensor], None] | None = None) -> stats.Floats:
        """(T + H,): the loss of every document, nats, in eval mode, `eval_batch` at a time. `see`
        is given the first document of each batch, its `token_losses` and its mask."""
        self.model.train(False)
        count, size, losses = len(self.documents), self.settings.eval_batch, []
        for start in range(0, count, size):
            batch = self.batch(slice(start, start + size))
            with self.passes(range(start, min(start + size, count))):
                token_losses = self.model.token_losses(batch)
            if see:
                see(start, token_losses, batch["mask"])
            losses.append(self.model.mean_losses(token_losses, batch))
        return torch.cat(losses).cpu().numpy().astype(np.float64)

    @contextmanager
    def passes(self, documents: Step | range) -> Iterator[None]:
        """Meanwhile these documents pass through the model."""
        self.passing = documents
        try:
            yield
        finally:
            self.passing = None

    def state(self) -> dict[str, Any]:
        """All that changes while it trains: episodes `done`, `weights` (TransformerLens name ->
        tensor), the `optimizer`'s state as torch gives it, that of its `parts`, loss `rows` so
        far. Tensors are copies."""
        return {
            "done": self.done,
            "weights": {n: p.detach().clone() for n, p in self.model.parameters.items()},
            "optimizer": _copied(self.optimizer.state_dict()),
            "parts": _copied(self._remembered()),
            "rows": self.rows[: self.done + 1].copy(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back, or on, to a `state` of a training of the same settings."""
        for name, parameter in self.model.parameters.items():
            parameter.copy_(state["weights"][name])
        self.fresh_optimizer().load_state_dict(_copied(state["optimizer"]))
        for name in self.parts.keys() & state["parts"].keys():
            self.parts[name].restore(_copied(state["parts"][name]))
        self.done = int(state["done"])
        self.rows[:] = np.nan
        self.rows[: self.done + 1] = state["rows"]


def _copied(state: Any) -> Any:
    """Of what an optimizer or a part gives as its state, tensors and arrays copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, np.ndarray):
        return state.copy()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
