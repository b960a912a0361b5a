"""What is done to documents once they are chosen: where each comes, and what it shares with the
next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recovery_probe.seeds import generator
from recovery_probe.settings import Documents as Part

Tokens = NDArray[np.int64]


def sizes(part: Part) -> tuple[int, int]:
    """Tokens that are kept of a document, and the least that one must have."""
    C = part.tokens
    if part.window != "none":
        return 2 * C, max(2 * C, part.min_tokens)
    return C, max(C, part.min_tokens) if part.shared else part.min_tokens


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


def ring(tokens: Tokens, names: Sequence[str], shared: int) -> tuple[Tokens, list[str]]:
    """Documents (T, C) as windows of C tokens onto a ring of T · (C - shared): the beginnings of
    all of them in turn. Each is its own beginning and what follows it; the next begins where its
    last `shared` tokens do. Named by the first and the last document that it has tokens of."""
    T, C = tokens.shape
    stride = C - shared
    around = tokens[:, :stride].ravel()
    starts = stride * np.arange(T)[:, None]
    last = [names[(j + (C - 1) // stride) % T] for j in range(T)]
    whole = [f"{name} … {end}" for name, end in zip(names, last, strict=True)]
    return around[(starts + np.arange(C)) % around.size], whole


def cut(inputs: dict[str, Any], start: int, size: int) -> dict[str, Any]:
    """A document's inputs at a step, its tokens those of `around` from `start` on."""
    rest = {name: values for name, values in inputs.items() if name != "around"}
    return {**rest, "tokens": inputs["around"][:, start : start + size]}
