"""What a document source is: a plug-in that yields documents, as text or as token ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from recovery_probe.errors import InputError
from recovery_probe.plugins import Plugin


@dataclass(frozen=True)
class Text:
    """One document as it stands in its source."""

    name: str
    text: str


@dataclass(frozen=True)
class Tokens:
    """One document of token ids, for which no tokenizer is asked."""

    name: str
    ids: tuple[int, ...]


class Source(Plugin):
    """The base of every document source."""

    group: ClassVar[str] = "documents"

    def read(self, address: str) -> Iterator[Text | Tokens]:
        """Every document, in the source's own order. `address` is what stands behind the source's
        name and a colon in `documents.source`. Raises `InputError`."""
        raise NotImplementedError

    def alone(self, address: str) -> None:
        """Raise `InputError` for an address, where a source has none."""
        if address:
            raise InputError(
                f"documents.source: {self.name} takes nothing behind its name; got {address!r}"
            )
