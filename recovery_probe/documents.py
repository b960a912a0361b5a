"""Text of any source -> tokens: T documents to train on, then H held out."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recovery_probe.config import Settings, generator
from recovery_probe.errors import InputError


@dataclass(frozen=True)
class Text:
    """One document as it stands in its source."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Tokenised documents: rows 0 … T-1 are trained on, rows T … T+H-1 are held out."""

    tokens: NDArray[np.int64]  # (T + H, C), padded on the right with token 0
    lengths: NDArray[np.int64]  # (T + H,), real tokens in each row
    texts: tuple[Text, ...]  # T + H
    trained: int  # T
    left_out: int  # documents of the source with fewer than min_tokens tokens

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each whole text."""
        return [hashlib.sha256(t.text.encode("utf-8", "replace")).hexdigest() for t in self.texts]


def load(settings: Settings, tokenize: Callable[[str], list[int]]) -> Documents:
    """Choose T + H documents of the source, by the seed, and tokenise them.

    `tokenize` turns a text into token ids. Raises `InputError` when the source cannot be read
    or has too few documents that are long enough.
    """
    wanted = settings.documents
    T, C, need = wanted.count, wanted.tokens, wanted.count + wanted.held_out
    texts = list(itertools.islice(read(wanted.source, wanted.field), wanted.pool))
    chosen: list[tuple[Text, list[int]]] = []
    left_out = 0
    for i in generator(settings.seed, "documents").permutation(len(texts)):
        ids = tokenize(texts[i].text)
        if len(ids) < wanted.min_tokens:
            left_out += 1
        elif len(chosen) < need:
            chosen.append((texts[i], ids[:C]))
    if len(chosen) < need:
        short = f" ({left_out} are shorter than {wanted.min_tokens} tokens)" if left_out else ""
        raise InputError(
            f"documents.count = {T} and documents.held_out = {wanted.held_out} need {need} "
            f"documents; {wanted.source!r} has {len(chosen)} that will do{short}: ask for fewer"
            + (", or lower documents.min_tokens" if left_out else "")
        )
    tokens = np.zeros((need, C), dtype=np.int64)
    for row, (_, ids) in zip(tokens, chosen, strict=True):
        row[: len(ids)] = ids
    return Documents(
        tokens=tokens,
        lengths=np.array([len(ids) for _, ids in chosen]),
        texts=tuple(text for text, _ in chosen),
        trained=T,
        left_out=left_out,
    )


def read(source: str, field: str = "text") -> Iterator[Text]:
    """Every document of a source, in the source's order. Raises `InputError`."""
    if source == "python-topics":
        return python_topics()
    if source == "lee":
        return _lee()
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), field)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(
            f"documents.source = {source!r}: no such file or folder, and not python-topics, lee "
            "or hf:NAME"
        )
    return _jsonl(path, field) if path.suffix in (".jsonl", ".ndjson") else _lines(path)


def python_topics() -> Iterator[Text]:
    """The language reference that comes with Python (what `help("assert")` shows)."""
    from pydoc_data.topics import topics

    return (Text(name, text) for name, text in topics.items())


def _lee() -> Iterator[Text]:
    # Only the file is wanted: importing gensim takes seconds.
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise InputError(
            'documents.source = "lee" needs gensim, which carries it: pip install gensim'
        )
    return _lines(Path(spec.origin).parent / "test" / "test_data" / "lee_background.cor")


def _lines(path: Path) -> Iterator[Text]:
    """One document a line; blank lines are no documents."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            yield Text(f"{path.name}:{number}", line)


def _folder(path: Path) -> Iterator[Text]:
    """One document a `.txt` or `.md` file, in the order of their names."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".txt", ".md"))
    if not files:
        raise InputError(f"documents.source = '{path}': no .txt or .md file in this folder")
    return (Text(f.name, _text(f)) for f in files)


def _jsonl(path: Path, field: str) -> Iterator[Text]:
    """One JSON object a line, with the text under `field`."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        yield Text(f"{path.name}:{number}", _field(row, field, f"{path}:{number}"))


def _hub(name: str, field: str) -> Iterator[Text]:
    """`NAME[:CONFIG][:FIELD]` through `datasets`, streamed, training split.

    With one part after the name, it is a configuration when the dataset has one of that name,
    and the field otherwise.
    """
    import datasets

    dataset, *parts = name.split(":")
    source = f"documents.source = 'hf:{name}'"
    if len(parts) > 2 or not dataset:
        raise InputError(f"{source}: expected hf:NAME[:CONFIG][:FIELD]")
    try:
        with quiet_hub():
            config = parts[0] if parts else None
            if len(parts) == 1 and config not in datasets.get_dataset_config_names(dataset):
                config = None
            if parts and (len(parts) == 2 or config is None):
                field = parts[-1]
            rows = datasets.load_dataset(dataset, config, split="train", streaming=True)
        for number, row in enumerate(rows):
            yield Text(f"{dataset}:{number}", _field(row, field, source))
    except InputError:
        raise
    except Exception as error:  # datasets raises a different type for each way of not finding
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{source}: not a dataset that can be had here: {reason}") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the hub client's line for every retry: what fails is told once, as our error."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object with a text under a name")
    if not isinstance(row.get(field), str):
        known = ", ".join(name for name, value in row.items() if isinstance(value, str))
        raise InputError(
            f"{where}: no text under {field!r}; set documents.field to one of: {known or 'none'}"
        )
    return str(row[field])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
