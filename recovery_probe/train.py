"""Cyclic fine-tuning: the loop, and `python -m recovery_probe.train`."""

from __future__ import annotations

if __name__ == "__main__":  # before torch: stopping it while it loads is no traceback
    from recovery_probe.__main__ import run

    run("train")

import copy
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from recovery_probe import config, documents, models
from recovery_probe.config import Settings
from recovery_probe.documents import Documents
from recovery_probe.errors import Diverged, InputError, Interrupted
from recovery_probe.machine import device_name, reproducible, size_of, threads, uninterrupted
from recovery_probe.models import Model
from recovery_probe.progress import Progress
from recovery_probe.recorders import EPISODE, STEP, Recorder, RunInfo, Step
from recovery_probe.recorders.hook import HookRecorder
from recovery_probe.recorders.recording import Recording, clock, find, made
from recovery_probe.run import Run, is_run, open_run, recovery_so_far
from recovery_probe.schedule import document_of_episode
from recovery_probe.sketch import ModuleSketches
from recovery_probe.store import as_path
from recovery_probe.writer import Writer, check_vacant

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
IGNORED = -100  # target of a position that has no loss


def fit(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    hooks: Iterable[Any] = (),
    hook_may_edit: bool = False,
    hook_during: str | None = None,
    overwrite: bool = False,
    exist_ok: bool = False,
    force: bool = False,
) -> Run:
    """Train as the settings say and return the run, written in the directory `out`.

    With `settings.control`, `out` gets one folder per schedule, `out/cyclic` and
    `out/shuffled`, and the cyclic run is returned; `run.controls` holds the other.

    `hooks` are recorded beside what `settings.recorders` names: pairs of a hook-point pattern and
    a TransformerLens hook function, triples with a name before them, or `Recorder` classes. A
    function sees the passes of `hook_during` (`training`, `evaluation` or `both`; training when
    not said), and may replace activations only with `hook_may_edit`: then in both when not said.

    Raises `InputError`, before any training, when the settings cannot be met, `out` is taken
    (`overwrite` replaces a run, and nothing else; `exist_ok` opens the run when it is a complete
    one of the same settings, and trains nothing) or the disk has no room (`force` tries all the
    same); `Diverged` or `HookError` when training fails and `Interrupted`, a `KeyboardInterrupt`,
    when it is stopped, with the record up to there kept.
    """
    settings, out, hooks = config.check(settings), as_path(out), list(hooks)
    plans = plan(settings, out)
    if len(plans) > 1 and is_run(out):
        raise InputError(f"{out}: holds a run already; with a control, choose another --out")
    if exist_ok and all(is_run(path) for path in plans):
        return _same(plans, [str(as_recorder(h, hook_may_edit, hook_during)) for h in hooks])
    for path in plans:
        check_vacant(path, overwrite)
    paths = list(plans)
    with threads(settings.threads):
        for path, planned in plans.items():
            # Recorders have a state: each run gets its own.
            extra = [as_recorder(hook, hook_may_edit, hook_during) for hook in hooks]
            control = f"../{paths[1].name}" if len(paths) > 1 and path == paths[0] else None
            _fit_one(planned, path, extra, control, overwrite, force)
    return open_run(paths[0])


def _same(plans: dict[Path, Settings], hooks: list[str]) -> Run:
    """The run that is there already. Raises `InputError` unless it is what was planned."""
    for path, planned in plans.items():
        run = open_run(path)
        differing = config.differences(planned, run.config)
        if run.provenance.get("hooks", []) != hooks:
            differing["hooks"] = (hooks, run.provenance.get("hooks", []))
        if run.status != "complete" or differing:
            told = ", ".join(f"{n} (asked {a!r}, there {b!r})" for n, (a, b) in differing.items())
            raise InputError(
                f"{path}: holds another run ({told or run.status}): choose another out, or "
                "overwrite=True"
            )
    return open_run(next(iter(plans)))


def plan(settings: Settings, out: Path) -> dict[Path, Settings]:
    """Directory -> settings of every run to be trained; the main run first. A control differs
    from its run in the schedule alone."""
    if settings.control == "none":
        return {out: settings}
    main = replace(settings, control="none")
    return {
        out / kind: replace(main, schedule=replace(settings.schedule, kind=kind))
        for kind in (settings.schedule.kind, settings.control)
    }


def as_recorder(hook: Any, may_edit: bool, during: Any = None) -> Recorder:
    """A recorder from what `fit` takes as a hook: (pattern, function), (name, pattern, function),
    a `Recorder` class, or a recorder, of which each run gets a copy."""
    if isinstance(hook, type) and issubclass(hook, Recorder):
        return made(hook)
    if isinstance(hook, Recorder):
        return copy.deepcopy(hook)
    if isinstance(hook, tuple) and len(hook) in (2, 3):
        *name, pattern, function = hook
        return HookRecorder(
            pattern, function, name=name[0] if name else None, may_edit=may_edit, during=during
        )
    raise InputError(
        f"hook {hook!r}: expected (pattern, function), (name, pattern, function), or a Recorder"
    )


def _fit_one(
    settings: Settings,
    path: Path,
    extra: list[Recorder],
    control: str | None,
    overwrite: bool,
    force: bool,
) -> None:
    model = models.load(settings)
    docs = documents.load(settings, model.tokenize)
    if copies := docs.left_out["duplicates"] + docs.left_out["near_duplicates"]:
        what = "copies" if copies > 1 else "copy"
        print(f"documents: {copies} {what} or near {what} of others left out", file=sys.stderr)
    schedule = document_of_episode(settings)
    tokens, targets = batch(docs, model.device)
    sketches = ModuleSketches(model.parameters, settings.sketch)
    info = RunInfo(settings, model, tokens, targets, docs.lengths, schedule, path, sketches)
    facts: dict[str, Any] = {
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "control": control,
        "hooks": [str(recorder) for recorder in extra],
        "documents_left_out": docs.left_out,
    }
    with reproducible(model.device):
        recording = Recording([*find(settings), *extra], info)
        announce(recording, info, force)
        with Writer.create(path, settings, docs, schedule, provenance=facts) as writer:
            recording.lay_out(writer)
            writer.put_in_place(overwrite)
            _train_and_finish(info, recording, writer)


def _train_and_finish(info: RunInfo, recording: Recording, writer: Writer) -> None:
    """Train, and say in the provenance how it ended, whatever happens."""
    settings, path, episodes = info.settings, info.path, len(info.schedule)
    status, message, started = "interrupted", "", time.monotonic()
    try:
        label = settings.schedule.kind
        with (
            recording.attached(),
            Progress(label, episodes, settings.documents.count) as progress,
        ):
            train(info, recording, writer, progress)
            status = "complete"
    except Diverged as failure:
        status, message = "diverged", str(failure)
        raise Diverged(f"{path}: {failure}") from None
    except KeyboardInterrupt:
        message = f"stopped after {max(0, writer.rows - 1)} of {episodes} episodes"
        raise Interrupted(f"{path}: {message}; the record so far is kept") from None
    except BaseException as failure:  # SystemExit too: a plug-in's exit is a failure
        status, message = "failed", f"{type(failure).__name__}: {failure}"
        raise
    finally:
        seconds = time.monotonic() - started
        with uninterrupted():
            facts = recording.finish(seconds)
            writer.finish(status, message, seconds=round(seconds, 2), **facts)


def announce(recording: Recording, info: RunInfo, force: bool) -> None:
    """Say on standard error what will be written and what it will cost, before it is.

    Raises `InputError` when the disk has no room for it, unless `force`.
    """
    work = recording.rehearse()
    step = step_seconds(info)
    total = 0
    for recorder, arrays in recording.sizes().items():
        size = sum(count for _, count in arrays.values())
        shapes = ", ".join(
            f"{n} {'×'.join(map(str, s))}" if s else n for n, (s, _) in arrays.items()
        )
        seconds, calls, each = work[recorder]
        share = ""
        if each == STEP and seconds > step / 200:
            share = f", about {seconds / step:.0%} of a step"
        elif each == EPISODE and seconds > step:
            share = f", about {seconds:.1f} s at each of {calls} episodes"
        print(f"record {recorder}: {size / 1e6:.1f} MB{share} ({shapes})", file=sys.stderr)
        total += size
    place = next(p for p in [info.path.resolve(), *info.path.resolve().parents] if p.exists())
    free = shutil.disk_usage(place).free
    if total > free and not force:
        raise InputError(
            f"{info.path}: the record may take {size_of(total)} and the disk has {size_of(free)}: "
            "record less (--no-record checkpoints), or add --force"
        )


def step_seconds(info: RunInfo) -> float:
    """Seconds of a forward and a backward pass on document 0, the better of two tries."""
    tries = []
    for _ in range(2):
        start = clock(info.model.device)
        losses_of(info.model, info.tokens[:1], info.targets[:1]).sum().backward()
        tries.append(clock(info.model.device) - start)
    for parameter in info.model.parameters.values():
        parameter.grad = None
    return min(tries)


def train(info: RunInfo, recording: Recording, writer: Writer, progress: Progress) -> None:
    """The loop: M gradient steps on each scheduled document, then the loss of all documents."""
    settings, model, tokens, targets = info.settings, info.model, info.tokens, info.targets
    T, parameters = settings.documents.count, list(model.parameters.values())
    rows = np.full((len(info.schedule) + 1, len(tokens)), np.nan)

    def finish_episode(done: int, train_loss: Sequence[float] = ()) -> None:
        rows[done] = evaluate(model, tokens, targets, settings.eval_batch, recording, done)
        check_finite(done - 1, train_loss, rows[done])
        recording.after_episode(done)
        recording.commit(writer)
        writer.commit(done, rows[done], train_loss)

    finish_episode(0)
    for episode, document in enumerate(info.schedule.tolist()):
        torch.manual_seed(config.torch_seed(settings.seed, f"dropout of episode {episode}"))
        if episode == 0 or settings.optimizer.reset:
            optimizer = make_optimizer(settings, parameters)
        this, length = slice(document, document + 1), int(info.lengths[document])
        seen = []
        model.train()
        for m in range(settings.steps):
            index = episode * settings.steps + m
            step = Step(index, episode, document, tokens[this], length, model)
            recording.before_step(step)
            optimizer.zero_grad()
            loss = losses_of(model, tokens[this], targets[this])[0]  # one document
            loss.backward()
            recording.after_backward(step)
            optimizer.step()
            recording.after_step(step)
            seen.append(loss.detach())
        finish_episode(episode + 1, torch.stack(seen).tolist())
        check_below_untrained(episode, rows[: episode + 2, :T], settings)
        if progress.due(episode + 1):  # recovery is worked out from all rows, so not every time
            so_far = recovery_so_far(rows[:, :T], info.schedule)
            progress.tell(episode + 1, float(rows[episode + 1, :T].mean()), so_far)
    recording.conclude()


def batch(docs: Documents, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and targets, each (T + H, C): the target of a position is the next token, and
    `IGNORED` at a document's end and in its padding. The padding is on the right of a causal
    model's text, so that no real position sees it."""
    tokens = torch.tensor(docs.tokens)
    position = torch.arange(tokens.shape[1])
    has_next = position + 1 < torch.tensor(docs.lengths)[:, None]
    targets = tokens.roll(-1, dims=1).where(has_next, IGNORED)
    return tokens.to(device), targets.to(device)


def token_losses(model: Model, tokens: Tensor, targets: Tensor) -> Tensor:
    """(batch, C): cross-entropy of the token that follows each position, nats; 0 where there is
    none."""
    logits = model.logits({"tokens": tokens})  # (batch, C, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(targets.shape)


def mean_losses(each: Tensor, targets: Tensor) -> Tensor:
    """(batch,): the mean of `token_losses` over the real next tokens of each document, nats."""
    return each.sum(1) / (targets != IGNORED).sum(1)


def losses_of(model: Model, tokens: Tensor, targets: Tensor) -> Tensor:
    """(batch,): mean cross-entropy over the real next tokens of each document, nats."""
    return mean_losses(token_losses(model, tokens, targets), targets)


@torch.no_grad()
def evaluate(
    model: Model, tokens: Tensor, targets: Tensor, size: int, recording: Recording, done: int
) -> NDArray[np.float64]:
    """(T + H,): the loss of every document, in eval mode, `size` documents at a time."""
    model.train(False)
    losses = []
    for start in range(0, len(tokens), size):
        these = slice(start, start + size)
        recording.evaluating(range(start, min(start + size, len(tokens))), done)
        each = token_losses(model, tokens[these], targets[these])
        # What follows a position is the token at the next one.
        at = each.where(targets[these] != IGNORED, torch.nan).roll(1, dims=1)
        at[:, 0] = torch.nan
        recording.evaluated(at)
        losses.append(mean_losses(each, targets[these]))
    return torch.cat(losses).cpu().numpy().astype(np.float64)


def make_optimizer(settings: Settings, parameters: list[Any]) -> torch.optim.Optimizer:
    """A fresh optimizer; `fused` is one kernel for each step, on every device."""
    wanted = settings.optimizer
    options: dict[str, Any] = {"lr": wanted.lr, "weight_decay": wanted.weight_decay, "fused": True}
    if wanted.name == "sgd":
        options["momentum"] = wanted.momentum
    return OPTIMIZERS[wanted.name](parameters, **options)


def check_finite(episode: int, train_loss: Sequence[float], row: NDArray[np.float64]) -> None:
    """Raise `Diverged` when a loss of this episode is not a number; -1 is before any training."""
    for step, loss in enumerate(train_loss):
        if not np.isfinite(loss):
            raise Diverged(
                f"episode {episode}: the training loss was {loss} at its step {step}; "
                "try a smaller optimizer.lr"
            )
    if not np.isfinite(row).all():
        count = int((~np.isfinite(row)).sum())
        raise Diverged(
            f"episode {episode}: {count} documents had a loss that is not finite after it; try a "
            "smaller optimizer.lr"
            if episode >= 0
            else f"before any training, {count} documents have a loss that is not finite"
        )


def check_below_untrained(episode: int, rows: NDArray[np.float64], settings: Settings) -> None:
    """Raise `Diverged` when the mean loss of the trained documents stayed above its untrained
    value for a whole epoch. `rows`: (episodes done + 1, T)."""
    T = settings.documents.count
    means = rows.mean(axis=1)
    if len(means) > T and (means[-T:] > means[0]).all():
        raise Diverged(
            f"episode {episode}: the mean loss has been above its untrained {means[0]:.3f} for a "
            f"whole epoch, and is now {means[-1]:.3f}; try an optimizer.lr smaller than "
            f"{settings.optimizer.lr:g}"
        )
