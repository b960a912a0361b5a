"""Cyclic fine-tuning: the loop, and `python -m recovery_probe.train`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from recovery_probe.errors import Diverged, InputError
from recovery_probe.models import Model
from recovery_probe.progress import Progress
from recovery_probe.run import Run, Writer, check_vacant, is_run, open_run, recovery_so_far
from recovery_probe.schedule import document_of_episode

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
IGNORED = -100  # label of a position that has no loss


def fit(settings: Settings, out: str | os.PathLike[str], *, overwrite: bool = False) -> Run:
    """Train as the settings say and return the run, written in the directory `out`.

    With `settings.control`, `out` gets one folder per schedule, `out/cyclic` and
    `out/shuffled`, and the cyclic run is returned; `run.controls` holds the other.

    Raises `InputError`, before any training, when the settings cannot be met or `out` is taken
    (`overwrite` replaces a run, and nothing else); `Diverged` when training fails, with the
    record up to there kept.
    """
    settings, out = config.check(settings), Path(out)
    plans = plan(settings, out)
    if len(plans) > 1 and is_run(out):
        raise InputError(f"{out}: holds a run already; with a control, choose another --out")
    for path in plans:
        check_vacant(path, overwrite)
    for path, planned in plans.items():
        control = [f"../{other.name}" for other in plans if other != path]
        is_main = planned.schedule.kind == "cyclic"
        _fit_one(planned, path, overwrite, control[0] if control and is_main else None)
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


def _fit_one(settings: Settings, path: Path, overwrite: bool, control: str | None) -> None:
    model = models.load(settings)
    docs = documents.load(settings, model.tokenize)
    schedule = document_of_episode(settings)
    facts = {"device": device_name(model.device), "threads": torch.get_num_threads()}
    writer = Writer.create(
        path,
        settings,
        docs,
        schedule,
        provenance={**facts, "control": control},
        overwrite=overwrite,
    )
    started = time.monotonic()
    status, message = "interrupted", "stopped before its last episode"
    try:
        with (
            reproducible(model.device),
            Progress(settings.schedule.kind, len(schedule), settings.documents.count) as progress,
        ):
            train(model, docs, schedule, settings, writer, progress)
            model.save(path / "checkpoints" / f"episodes-{len(schedule):05d}")
            status, message = "complete", ""
    except Diverged as failure:
        status, message = "diverged", str(failure)
        raise Diverged(f"{path}: {failure}") from None
    finally:
        writer.finish(status, message, seconds=round(time.monotonic() - started, 2))


def train(
    model: Model,
    docs: Documents,
    schedule: NDArray[np.int32],
    settings: Settings,
    writer: Writer,
    progress: Progress,
) -> None:
    """The loop: M gradient steps on each scheduled document, then the loss of all documents."""
    tokens, labels = batch(docs, model.device)
    parameters = list(model.parameters.values())
    rows = np.full((len(schedule) + 1, len(tokens)), np.nan)
    rows[0] = evaluate(model, tokens, labels, settings.eval_batch)
    writer.commit(0, rows[0])
    for episode, document in enumerate(schedule):
        torch.manual_seed(config.torch_seed(settings.seed, f"dropout of episode {episode}"))
        if episode == 0 or settings.optimizer.reset:
            optimizer = make_optimizer(settings, parameters)
        this = slice(document, document + 1)
        seen = []
        model.train()
        for _ in range(settings.steps):
            optimizer.zero_grad()
            loss = losses_of(model, tokens[this], labels[this])[0]  # one document
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
        train_loss = torch.stack(seen).tolist()
        rows[episode + 1] = evaluate(model, tokens, labels, settings.eval_batch)
        check_finite(episode, document, train_loss, rows[episode + 1])
        writer.commit(episode + 1, rows[episode + 1], train_loss)
        check_below_untrained(episode, rows[: episode + 2, : docs.trained], settings)
        mean = float(rows[episode + 1, : docs.trained].mean())
        progress.update(episode + 1, mean, recovery_so_far(rows, schedule))


def batch(docs: Documents, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and labels, each (T + H, C); padding carries the label `IGNORED`. The padding is on
    the right of a causal model's text, so that no real position sees it."""
    tokens = torch.tensor(docs.tokens)
    real = torch.arange(tokens.shape[1]) < torch.tensor(docs.lengths)[:, None]
    return tokens.to(device), tokens.where(real, IGNORED).to(device)


def losses_of(model: Model, tokens: Tensor, labels: Tensor) -> Tensor:
    """(batch,): mean cross-entropy over the real next tokens of each document, nats."""
    logits = model.bridge(tokens, use_cache=False)[:, :-1]  # (batch, C - 1, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels[:, 1:]
    each = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(target.shape)
    return each.sum(1) / (target != IGNORED).sum(1)


@torch.no_grad()
def evaluate(model: Model, tokens: Tensor, labels: Tensor, size: int) -> NDArray[np.float64]:
    """(T + H,): the loss of every document, in eval mode, `size` documents at a time."""
    model.train(False)
    pairs = zip(tokens.split(size), labels.split(size), strict=True)
    losses = torch.cat([losses_of(model, *pair) for pair in pairs])
    return losses.cpu().numpy().astype(np.float64)


def make_optimizer(settings: Settings, parameters: list[Any]) -> torch.optim.Optimizer:
    """A fresh optimizer; `fused` is one kernel for each step, on every device."""
    wanted = settings.optimizer
    options: dict[str, Any] = {"lr": wanted.lr, "weight_decay": wanted.weight_decay, "fused": True}
    if wanted.name == "sgd":
        options["momentum"] = wanted.momentum
    return OPTIMIZERS[wanted.name](parameters, **options)


def check_finite(
    episode: int, document: int, train_loss: list[float], row: NDArray[np.float64]
) -> None:
    """Raise `Diverged` when a loss of this episode is not a number."""
    for step, loss in enumerate(train_loss):
        if not np.isfinite(loss):
            raise Diverged(
                f"episode {episode} (document {document}): the training loss was {loss} at its "
                f"step {step}; try a smaller optimizer.lr"
            )
    if not np.isfinite(row).all():
        raise Diverged(
            f"episode {episode} (document {document}): {int((~np.isfinite(row)).sum())} documents "
            "had a loss that is not finite after it; try a smaller optimizer.lr"
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


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels, and a global generator (dropout draws from it) that is put back."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    gpus = [device.index or 0] if device.type == "cuda" else []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    import sys

    from recovery_probe.cli import main

    main(["train", *sys.argv[1:]])
