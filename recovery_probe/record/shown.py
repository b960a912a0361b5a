"""A run in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from recovery_probe import plugins
from recovery_probe.settings import Documents, Model, Optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown:
    """How a `Run` shows itself."""

    def plot(self) -> Figure:
        """The picture, its control beside it: mean loss by the episodes since a document
        was trained on. Raises `Missing` before any has come back."""
        from recovery_probe.analyze import picture

        run: Any = self
        return picture.draw(picture.numbers(run, run.controls))

    def live(self, seconds: float = 5) -> None:
        """In a notebook: the picture and the explorer of a run that is being written, anew whenever
        an epoch has come (looked for every so many seconds), until it ends."""
        from recovery_probe.analyze import live

        run: Any = self
        live.watch(run, seconds)

    def summary(self) -> dict[str, str]:
        """What the run is, in a few words each."""
        return summary(self)

    def __repr__(self) -> str:
        return "\n".join(f"{name:>16}  {value}" for name, value in self.summary().items())

    def _repr_html_(self) -> str:
        return html(self)


def summary(run: Any) -> dict[str, str]:
    """What a `Run` is, in a few words each."""
    c = run.config
    total = len(run.schedule)
    size = sum(f.stat().st_size for f in (run.path / "record.zarr").rglob("*") if f.is_file())
    message = run.provenance.get("message")
    return {
        "run": str(run.path),
        "status": run.status + (f": {message}" if message else ""),
        "progress": f"{run.episodes_done} of {total} episodes",
        "model": _model(c.model),
        "documents": f"{c.documents.count} + {c.documents.held_out} held out, "
        f"{c.documents.tokens} tokens, {c.documents.source}"
        + "".join(f", {said}" for said in _arranged(c.documents)),
        "schedule": f"{described(c.schedule.kind, c.schedule.own)}, {c.epochs} epochs, "
        f"{c.steps} steps per episode",
        "optimizer": described(c.optimizer.name, c.optimizer.own)
        + "".join(f", {said}" for said in _rate_and_state(c.optimizer)),
        "interventions": "; ".join(
            described(n, c.tables.get(plugins.key_of(n), {})) for n in c.interventions
        )
        or "none",
        "recorders": ", ".join([*run.recorders, *run.provenance.get("hooks", [])]) or "none",
        **_went_on(run.provenance),
        "recovery so far": "none yet" if np.isnan(run.recovery) else f"{run.recovery:.2f}",
        "record": f"{size / 1e6:.1f} MB",
    }


def _went_on(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Of a run that was resumed or lengthened: after which episodes, and whether that shows."""
    said = [f"to {entry['epochs'][1]} epochs" for entry in provenance.get("lengthened", [])]
    for entry in provenance.get("resumed", []):
        differs = entry.get("differs")
        off = f" (losses differ from before by up to {differs['by']:.2g} nats)" if differs else ""
        said.append(f"after {entry['after']} episodes{off}")
    return {"went on": "; ".join(said)} if said else {}


def _model(model: Model) -> str:
    drawn = f"random init ({model.init})"
    if model.source == "random":
        inside = f", its MLP {model.mlp_ratio:g} times that" * (model.mlp_ratio != 4)
        return f"{model.architecture}, {model.depth} blocks, {model.width} wide{inside}, {drawn}"
    said = f", revision {model.revision}" * (model.revision != "main")
    return model.source + said + f", {drawn}" * (model.weights == "drawn")


def _rate_and_state(optimizer: Optimizer) -> list[str]:
    said = {
        "lr shared by the steps of an episode": optimizer.per == "episode",
        "cosine to 0": optimizer.decay == "cosine",
        f"state reset each {optimizer.reset}": optimizer.reset != "never",
    }
    return [words for words, so in said.items() if so]


def html(run: Any) -> str:
    """The same as a table."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in summary(run).items()
    )
    return f"<table>{rows}</table>"


def described(name: str, settings: Mapping[str, Any]) -> str:
    """`sgd, lr 0.1`: a plug-in and those of its settings that say something."""
    return ", ".join([name, *plugins.in_words(settings)])


def _arranged(documents: Documents) -> list[str]:
    said = {
        f"window moves by up to {documents.window}": documents.window != "none",
        "steps without padding": documents.padding == "none",
        f"neighbours share {documents.overlap:g}": documents.overlap > 0,
        f"places by permutation {documents.permute}": documents.permute > 0,
    }
    return [words for words, so in said.items() if so]
