"""What is done to documents once they are chosen: where each comes, and what it shares with the
next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recovery_probe.errors import InputError
from recovery_probe.seeds import generator
from recovery_probe.settings import Documents as Part

Tokens = NDArray[np.int64]


def sizes(part: Part) -> tuple[int, int]:
    """Tokens that are kept of a document, and the least that one must have. Raises `InputError` for
    settings that cannot go together."""
    T, C, window = part.count, part.tokens, part.window
    if part.overlap and window != "none":
        raise InputError("documents.overlap and documents.window: one of the two")
    if part.overlap and T * _stride(C, part.overlap) < C:
        raise InputError(
            f"documents.overlap = {part.overlap}: {T} documents that share so much have fewer than "
            f"the {C} tokens of one: lower it, or raise documents.count"
        )
    if window == "none":
        return C, max(part.min_tokens, C if part.overlap else 2)
    if window > C // 2:
        raise InputError(
            f"documents.window = {window}: expected 0 to {C // 2}, half of documents.tokens"
        )
    return 2 * C, max(2 * C, part.min_tokens)


def places(trained: int, total: int, number: int) -> list[int]:
    """Of each place, the document drawn for it, or the one that a permutation of the trained ones
    puts there."""
    order = np.arange(total)
    if number:
        order[:trained] = generator(number, "places of documents").permutation(trained)
    return order.tolist()


def middle(wide: Tokens) -> Tokens:
    """(documents, C) of (documents, 2C): from C / 2 on."""
    size = wide.shape[1] // 2
    return wide[:, size // 2 : size // 2 + size].copy()


def offsets(size: int, window: int, steps: int, rng: np.random.Generator) -> list[int]:
    """Where each step's C tokens begin in 2C (the paper's public code): C / 2 + U{-w … w}."""
    return (size // 2 + rng.integers(-window, window, steps, endpoint=True)).tolist()


def ring(tokens: Tokens, names: Sequence[str], overlap: float) -> tuple[Tokens, list[str]]:
    """Documents (T, C) as windows onto a ring: the beginnings of all of them in turn, of which
    each has its own and, for a share of its tokens, those that follow. Neighbours share the most,
    and the last shares with the first."""
    T, C = tokens.shape
    stride = _stride(C, overlap)
    around = tokens[:, :stride].ravel()
    starts = stride * np.arange(T)[:, None]
    last = [names[(j + (C - 1) // stride) % T] for j in range(T)]
    whole = [f"{name} … {end}" for name, end in zip(names, last, strict=True)]
    return around[(starts + np.arange(C)) % around.size], whole


def _stride(size: int, overlap: float) -> int:
    return max(1, round((1 - overlap) * size))


def cut(inputs: dict[str, Any], start: int, size: int) -> dict[str, Any]:
    """A document's inputs at a step, its tokens those of `around` from `start` on."""
    around = inputs["around"][:, start : start + size]
    return {**inputs, "tokens": around}
