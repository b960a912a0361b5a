"""Documents of a file or a folder of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recovery_probe import plugins
from recovery_probe.documents.reading import field_of, lines, numbered, opened
from recovery_probe.documents.source import Source, Text, Tokens
from recovery_probe.errors import InputError
from recovery_probe.spelling import nearest


@dataclass
class Files(Source):
    """A folder of `.txt` and `.md` files, one document each, in the order of their names; a file of
    JSON objects (`.jsonl`), one a line; token ids (`.npy`), one document a row, its end and what is
    past it negative; any other file as text, one document a line."""

    name = "files"

    # the field that holds the text, in JSONL files
    field: str = "text"

    def read(self, address: str) -> Iterator[Text | Tokens]:
        if not address:
            raise InputError("documents.source names no file or folder")
        path = Path(address).expanduser()
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            known = [name for name in plugins.installed("documents") if name != self.name]
            raise InputError(
                f"documents.source = {address!r}: no such file or folder"
                f"{nearest(address, known)}; installed sources: {', '.join(sorted(known))}"
            )
        if path.suffix in (".jsonl", ".ndjson"):
            return _jsonl(path, self.field)
        return _token_rows(path) if path.suffix == ".npy" else lines(path)


def _folder(path: Path) -> Iterator[Text]:
    """One document a `.txt` or `.md` file, in the order of their names."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".txt", ".md"))
    if not files:
        raise InputError(f"documents.source = '{path}': no .txt or .md file in this folder")
    for file in files:
        with opened(file) as content:
            text = content.read()
        yield Text(file.name, text)


def _jsonl(path: Path, field: str) -> Iterator[Text]:
    """One JSON object a line, with the text under `field`."""
    for number, line in numbered(path):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:  # absurd numbers, absurd nesting
            raise InputError(f"{path}:{number}: not JSON that can be read: {error}") from None
        yield Text(f"{path.name}:{number}", field_of(row, field, f"{path}:{number}"))


def _token_rows(path: Path) -> Iterator[Tokens]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array: {error}") from None
    if not isinstance(rows, np.ndarray):
        raise InputError(f"{path}: cannot be read as an array: it holds several")
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {rows.dtype} of shape {rows.shape}; expected token ids, whole numbers, "
            "(document, position)"
        )
    for number, row in enumerate(rows):
        past = np.flatnonzero(row < 0)
        end = int(past[0]) if len(past) else len(row)
        if (row[end:] >= 0).any():
            raise InputError(f"{path}: row {number} has tokens past its end, at position {end}")
        yield Tokens(f"{path.name}:{number}", tuple(row[:end].tolist()))
