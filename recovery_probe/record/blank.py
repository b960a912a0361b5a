"""The record of a run that has not started: every array, for the whole of it, without values."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from recovery_probe.documents import Documents
from recovery_probe.record import labels, store
from recovery_probe.record.layout import FORMAT, TRAINING, Timeline
from recovery_probe.settings import Settings

INPUTS = {
    "tokens": "token ids; 0 past a document's length",
    "mask": "where a document is real",
    "around": "token ids that each step's are cut from; tokens are the middle",
}


def lay_out(path: Path, settings: Settings, documents: Documents, timeline: Timeline) -> None:
    """The arrays of a run that has not started, in the group `training`. The root holds none: a
    group's times need not be those of another, and xarray's trees want them alike from parent to
    child."""
    T, rows, total = timeline.documents, timeline.episodes + 1, len(documents)
    episode = np.arange(timeline.episodes)
    position = np.arange(documents.mask.shape[1])
    inputs = {
        name: (
            ("document", *_dims(name, values, documents)),
            values,
            about(INPUTS.get(name, "what the network is given")),
        )
        for name, values in documents.inputs.items()
    }
    static = xr.Dataset(
        {
            "document_of_episode": (
                "episode",
                timeline.schedule,
                about("document each episode trains on"),
            ),
            **inputs,
            "length": ("document", documents.lengths, about("real positions", "positions")),
            "name": ("document", clean(documents.names), about("its source's")),
            "digest": ("document", documents.digests, about("SHA-256 of the text")),
            "excerpt": (
                "document",
                clean(text[:200] for text in documents.texts),
                about("first 200 characters of its text"),
            ),
        },
        coords={
            "document": ("document", np.arange(total), about(labels.ABOUT["document"])),
            "held_out": ("document", np.arange(total) >= T, about("never trained on")),
            "position": ("position", position, about(labels.ABOUT["position"])),
            "episodes_done": (
                "episodes_done",
                np.arange(rows),
                about(labels.ABOUT["episodes_done"]),
            ),
            "episode": ("episode", episode, about(labels.ABOUT["episode"])),
            "epoch": ("episode", timeline.place(episode)[0] + 1, about(labels.ABOUT["epoch"])),
            "step": ("step", np.arange(timeline.total), about(labels.ABOUT["step"])),
        },
        attrs={
            "inputs": list(documents.inputs),
            "episodes_per_epoch": timeline.per_epoch,
            "epoch_lengths": list(timeline.lengths),
            "description": "only the first rows_committed rows of losses, and the steps of that "
            "many episodes less one, count",
        },
    )
    store.write_zarr(static, path, group=TRAINING)
    group = zarr.open_group(path / TRAINING, mode="r+", use_consolidated=False)
    create(
        group,
        "losses",
        (rows, total),
        (min(T, rows), total),
        "float64",
        ("episodes_done", "document"),
        about(
            "mean loss after each episode (of text, token cross-entropy); row 0 untrained", "nats"
        ),
    )
    create(
        group,
        "train_loss",
        (timeline.total,),
        (min(timeline.steps * T, timeline.total),),
        "float64",
        ("step",),
        about("loss of the training document right before each step", "nats"),
    )
    counted = about("rows of losses that count, from the start", "rows")
    create(group, "rows_committed", (), (), "int64", (), counted)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.attrs.update(
        {
            "format": FORMAT,
            "description": "recovery_probe run: what was trained is in the group training, what a "
            "recorder wrote in a group of its name",
            "status": "running",
            "recovery_probe": importlib.metadata.version("recovery_probe"),
            "seed": str(settings.seed),
            "epochs": settings.epochs,
            "documents": T,
            "steps_per_episode": timeline.steps,
            "optimizer": settings.optimizer.name,
            **{
                name: settings.optimizer.own[name]
                for name in ("lr",)
                if name in settings.optimizer.own
            },
            "schedule": settings.schedule.kind,
        }
    )


def _dims(name: str, values: NDArray[Any], documents: Documents) -> list[str]:
    """Names of an input's dimensions behind `document`; the first is `position` where it has as
    many places as a document."""
    first = values.shape[1:2] == documents.mask.shape[1:2]
    return [
        "position" if axis == 1 and first else f"{name}_{axis}" for axis in range(1, values.ndim)
    ]


def create(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    dims: tuple[str, ...],
    attributes: dict[str, Any],
) -> None:
    """An array without values: NaN, or 0 for what is no real number."""
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=np.nan if np.issubdtype(np.dtype(dtype), np.floating) else 0,
        dimension_names=dims,
        attributes=attributes,
        compressors=store.COMPRESSORS,
        config=store.KEEP_EMPTY,
    )


def about(description: str, units: str = "1") -> dict[str, Any]:
    return {"description": description, "units": units}


def clean(values: Iterable[str]) -> list[str]:
    """Without the lone surrogates that text read from JSON can hold and UTF-8 cannot."""
    return [v.encode("utf-8", "replace").decode("utf-8") for v in values]
