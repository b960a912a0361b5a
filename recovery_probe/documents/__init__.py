"""What is trained on and evaluated: documents of a source, chosen by the seed, as named inputs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recovery_probe import config
from recovery_probe.documents import arrange
from recovery_probe.documents.copies import Copies
from recovery_probe.documents.source import Source, Text, Tokens
from recovery_probe.errors import InputError
from recovery_probe.plugins import AUTHORS, reason
from recovery_probe.seeds import generator
from recovery_probe.settings import Settings


@dataclass(frozen=True)
class Documents:
    """Documents as a network is given them: rows 0 … T-1 are trained on, rows T … T+H-1 are held
    out."""

    # Name -> (T + H, …), what the model's losses take. Of text: `tokens` (document, position),
    # padded on the right with token 0, and `mask` (document, position), where it is real; with a
    # window `around` (document, 2C) too, of which `tokens` are the middle.
    inputs: dict[str, NDArray[Any]]
    names: tuple[str, ...]  # T + H
    texts: tuple[str, ...]  # T + H; empty for a document that has none
    trained: int  # T
    # Documents drawn and not taken: too_short (fewer than min_tokens tokens), duplicates (the
    # tokens of one already taken), near_duplicates (a near copy of one already taken)
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(T + H, position): where a document is real."""
        return self.inputs["mask"]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(T + H,): real positions of each."""
        return self.mask.sum(axis=1)

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each whole text, or of the inputs of a document that has none."""
        return [
            hashlib.sha256(text.encode("utf-8", "replace") or self._bytes(i)).hexdigest()
            for i, text in enumerate(self.texts)
        ]

    def _bytes(self, document: int) -> bytes:
        return b"".join(values[document].tobytes() for values in self.inputs.values())


def load(settings: Settings, tokenize: Callable[[str], list[int]]) -> Documents:
    """Choose T + H documents of the source, by the seed, and tokenise them.

    No two of them are copies or near copies of each other: one held out would be trained on
    through the other. Blank texts are no documents. `tokenize` turns a text into token ids.
    Raises `InputError` when the source cannot be read or has too few documents that will do.
    """
    part = settings.documents
    T, C, need = part.count, part.tokens, part.count + part.held_out
    wide, least = arrange.sizes(part)
    source, address = config.made(settings, "documents"), config.chosen(settings, "documents")[1]
    pool = list(itertools.islice(_read(source, address), part.pool))
    chosen: list[tuple[Text | Tokens, list[int]]] = []
    left_out = {"too_short": 0, "duplicates": 0, "near_duplicates": 0}
    copies = Copies()
    for i in generator(settings.seed.documents, "documents").permutation(len(pool)):
        if len(chosen) == need:
            break
        ids = first_tokens(pool[i], tokenize, max(wide, least))
        flaw = "too_short" if len(ids) < least else copies.kind(ids[:wide])
        if flaw:
            left_out[flaw] += 1
        else:
            chosen.append((pool[i], ids[:wide]))
            copies.add(ids[:wide])
    if len(chosen) < need:
        raise InputError(_too_few(settings, len(pool), len(chosen), left_out, least))
    names = [document.name for document, _ in chosen]
    texts = [getattr(document, "text", "") for document, _ in chosen]
    tokens = np.zeros((need, wide), dtype=np.int64)
    for row, (_, ids) in zip(tokens, chosen, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for _, ids in chosen])
    inputs: dict[str, NDArray[Any]] = {}
    if part.window != "none":
        inputs["around"], tokens, lengths = tokens, arrange.middle(tokens), lengths - C
    if part.shared:
        tokens[:T], names[:T] = arrange.ring(tokens[:T], names[:T], part.shared)
        texts[:T] = [""] * T  # none of its own: its tokens are from several
    inputs |= {"tokens": tokens, "mask": np.arange(C) < lengths[:, None]}
    order = arrange.places(T, need, part.permute)
    return Documents(
        inputs={name: values[order] for name, values in inputs.items()},
        names=tuple(names[i] for i in order),
        texts=tuple(texts[i] for i in order),
        trained=T,
        left_out=left_out,
    )


def _read(source: Source, address: str) -> Iterator[Text | Tokens]:
    """The source's documents that are not blank."""
    try:
        for document in source.read(address):
            if not isinstance(document, Text | Tokens):
                raise InputError(
                    f"source {source.name} gave a {type(document).__name__}, and not a Text or "
                    "Tokens"
                )
            if isinstance(document, Tokens):
                _check_ids(source, document)
            if isinstance(document, Tokens) or document.text.strip():
                yield document
    except InputError:
        raise
    except AUTHORS as error:
        raise InputError(f"source {source.name} failed: {reason(error)}") from error


def _check_ids(source: Source, document: Tokens) -> None:
    """Raise `InputError` for a token that no vocabulary has."""
    for token in document.ids:
        if not (isinstance(token, Integral) and 0 <= token <= np.iinfo(np.int32).max):
            raise InputError(
                f"source {source.name}: {document.name}: token {token!r}; expected whole numbers "
                "from 0"
            )


def first_tokens(
    document: Text | Tokens, tokenize: Callable[[str], list[int]], count: int
) -> list[int]:
    """The first `count` tokens of a document (fewer when it has fewer), without tokenising the
    rest of a long text. Tokens near a cut may differ from the whole text's: as many again are
    made."""
    if isinstance(document, Tokens):
        return list(document.ids[:count])
    length = 16 * count + 1000
    while True:
        ids = tokenize(document.text[:length])
        if length >= len(document.text) or len(ids) >= 2 * count:
            return ids[:count]
        length *= 4


def _too_few(
    settings: Settings, read: int, will_do: int, left_out: dict[str, int], least: int
) -> str:
    part = settings.documents
    all_read = read < part.pool  # otherwise the source may hold more
    flaws = {
        f"are shorter than {least} tokens": left_out["too_short"],
        "are copies of another": left_out["duplicates"],
        "are nearly copies of another": left_out["near_duplicates"],
    }
    reasons = ", ".join(f"{count} {what}" for what, count in flaws.items() if count)
    mends = ["ask for fewer"]
    shorter = "lower documents." + ("min_tokens" if least == part.min_tokens else "tokens")
    mends += [shorter] if left_out["too_short"] else []
    mends += [] if all_read else ["raise documents.pool"]
    return (
        f"documents.count = {part.count} and documents.held_out = {part.held_out} need "
        f"{part.count + part.held_out} documents; {part.source!r} has {will_do} that will do"
        + ("" if all_read else f" among its first {read} (documents.pool)")
        + (f" ({reasons})" if reasons else "")
        + f": {', or '.join(mends)}"
    )
