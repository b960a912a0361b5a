"""The documents that a run had, and more of the same source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recovery_probe import documents
from recovery_probe.documents import Documents
from recovery_probe.errors import InputError
from recovery_probe.record.run import Run
from recovery_probe.settings import Settings


def recorded(run: Run) -> Documents:
    """The documents of a run, as its record has them; of their texts, the beginnings."""
    record = run.record
    return Documents(
        inputs={name: record[name].values for name in record.attrs["inputs"]},
        names=tuple(map(str, record.name.values)),
        texts=tuple(map(str, record.excerpt.values)),
        trained=run.config.documents.count,
        left_out=dict(run.provenance.get("documents_left_out", {})),
    )


def with_more(
    known: Documents, settings: Settings, tokenize: Callable[[str], list[int]], run: Run
) -> Documents:
    """More documents of the same source, those of `run` first. Raises `InputError` where these are
    others."""
    found = documents.load(settings, tokenize)
    T = known.trained
    same = found.inputs.keys() == known.inputs.keys() and all(
        np.array_equal(values[:T], found.inputs[name][:T]) for name, values in known.inputs.items()
    )
    if found.trained < T or not same:
        raise InputError(
            f"documents.count = {found.trained}: a run that begins with a checkpoint of "
            f"{run.path} has its {T} documents first, and the source has others now"
        )
    return found


def check_tokens(chosen: Documents, known: int, settings: Settings) -> None:
    """Raise `InputError` for a token of which the network, with `known` embeddings, has none."""
    tokens = chosen.inputs.get("around", chosen.inputs.get("tokens"))
    if tokens is not None and tokens.max() >= known:
        raise InputError(
            f"documents.source = {settings.documents.source!r}: token {tokens.max()}, and the "
            f"network has embeddings for {known} tokens; they do not belong together"
        )
