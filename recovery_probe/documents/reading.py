"""Text of a file or of a table, read as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from recovery_probe.documents.source import Text
from recovery_probe.errors import InputError


def lines(path: Path) -> Iterator[Text]:
    """One document a line."""
    return (Text(f"{path.name}:{number}", line) for number, line in numbered(path))


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, read as they are asked for. Only line feeds and carriage
    returns end a line: `str.splitlines` would also cut at form feeds and U+2028."""
    with opened(path) as content:
        for number, line in enumerate(content, start=1):
            yield number, line.removesuffix("\n")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: not a file")
    try:
        with path.open(encoding="utf-8-sig") as content:
            yield content
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def field_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object with a text under a name")
    if not isinstance(row.get(field), str):
        known = ", ".join(name for name, value in row.items() if isinstance(value, str))
        raise InputError(
            f"{where}: no text under {field!r}; set documents.field to one of: {known or 'none'}"
        )
    # JSON can spell half a surrogate pair, which is no text and which no tokenizer takes.
    return str(row[field]).encode("utf-8", "replace").decode("utf-8")
