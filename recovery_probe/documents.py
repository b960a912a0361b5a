"""Text of any source -> tokens: T documents to train on, then H held out."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from recovery_probe.config import Settings, generator
from recovery_probe.errors import InputError

# A document is a near copy of another when NEAR of its runs of RUN tokens stand in it: about as
# many as are left when one token in five is changed, (4/5)⁵ = .33. Of the built-in documents at
# the quickstart's sizes, "break" shares .47 of its runs with "continue", and no other pair of
# different texts more than .23.
RUN, NEAR = 5, 1 / 3


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
    # Documents drawn and not taken: too_short (fewer than min_tokens tokens), duplicates (the
    # tokens of one already taken), near_duplicates (a near copy of one already taken)
    left_out: dict[str, int]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each whole text."""
        return [hashlib.sha256(t.text.encode("utf-8", "replace")).hexdigest() for t in self.texts]


def load(settings: Settings, tokenize: Callable[[str], list[int]]) -> Documents:
    """Choose T + H documents of the source, by the seed, and tokenise them.

    No two of them are copies or near copies of each other: one held out would be trained on
    through the other. Blank texts are no documents. `tokenize` turns a text into token ids.
    Raises `InputError` when the source cannot be read or has too few documents that will do.
    """
    wanted = settings.documents
    T, C, need = wanted.count, wanted.tokens, wanted.count + wanted.held_out
    written = (t for t in read(wanted.source, wanted.field) if t.text.strip())
    texts = list(itertools.islice(written, wanted.pool))
    chosen: list[tuple[Text, list[int]]] = []
    left_out = {"too_short": 0, "duplicates": 0, "near_duplicates": 0}
    copies = Copies()
    for i in generator(settings.seed, "documents").permutation(len(texts)):
        if len(chosen) == need:
            break
        ids = first_tokens(texts[i].text, tokenize, max(C, wanted.min_tokens))
        reason = "too_short" if len(ids) < wanted.min_tokens else copies.kind(ids[:C])
        if reason:
            left_out[reason] += 1
        else:
            chosen.append((texts[i], ids[:C]))
            copies.add(ids[:C])
    if len(chosen) < need:
        raise InputError(_too_few(settings, len(texts), len(chosen), left_out))
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


def first_tokens(text: str, tokenize: Callable[[str], list[int]], count: int) -> list[int]:
    """The first `count` tokens of a text (fewer when it has fewer), without tokenising the rest
    of a long one. Tokens near a cut may differ from the whole text's: as many again are made."""
    length = 16 * count + 1000
    while True:
        ids = tokenize(text[:length])
        if length >= len(text) or len(ids) >= 2 * count:
            return ids[:count]
        length *= 4


class Copies:
    """Tells whether a document is a copy, or a near copy, of one taken before."""

    def __init__(self) -> None:
        self.taken: set[tuple[int, ...]] = set()
        self.holders: dict[tuple[int, ...], list[int]] = defaultdict(list)  # run -> who has it
        self.sizes: list[int] = []  # distinct runs of each

    def kind(self, ids: list[int]) -> str:
        """`duplicates`, `near_duplicates`, or nothing when the document is new."""
        if tuple(ids) in self.taken:
            return "duplicates"
        runs = _runs(ids)
        shared = Counter(other for run in runs for other in self.holders.get(run, ()))
        # Of the shorter of the two: a document may also be a piece of another.
        near = any(n >= NEAR * min(len(runs), self.sizes[other]) for other, n in shared.items())
        return "near_duplicates" if near else ""

    def add(self, ids: list[int]) -> None:
        runs = _runs(ids)
        for run in runs:
            self.holders[run].append(len(self.sizes))
        self.sizes.append(len(runs))
        self.taken.add(tuple(ids))


def _runs(ids: list[int]) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + RUN]) for i in range(max(1, len(ids) - RUN + 1))}


def _too_few(settings: Settings, read: int, will_do: int, left_out: dict[str, int]) -> str:
    wanted = settings.documents
    all_read = read < wanted.pool  # otherwise the source may hold more
    said = {
        f"are shorter than {wanted.min_tokens} tokens": left_out["too_short"],
        "are copies of another": left_out["duplicates"],
        "are nearly copies of another": left_out["near_duplicates"],
    }
    reasons = ", ".join(f"{count} {what}" for what, count in said.items() if count)
    mends = ["ask for fewer"]
    mends += ["lower documents.min_tokens"] if left_out["too_short"] else []
    mends += [] if all_read else ["raise documents.pool"]
    return (
        f"documents.count = {wanted.count} and documents.held_out = {wanted.held_out} need "
        f"{wanted.count + wanted.held_out} documents; {wanted.source!r} has {will_do} that will do"
        + ("" if all_read else f" among its first {read} (documents.pool)")
        + (f" ({reasons})" if reasons else "")
        + f": {', or '.join(mends)}"
    )


def read(source: str, field: str = "text") -> Iterator[Text]:
    """Every text of a source, in the source's order. Raises `InputError`."""
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
            'documents.source = "lee" needs gensim, which carries it: '
            'pip install -c constraints.txt ".[lee]"'
        )
    return _lines(Path(spec.origin).parent / "test" / "test_data" / "lee_background.cor")


def _lines(path: Path) -> Iterator[Text]:
    """One document a line."""
    return (Text(f"{path.name}:{number}", line) for number, line in _numbered(path))


def _folder(path: Path) -> Iterator[Text]:
    """One document a `.txt` or `.md` file, in the order of their names."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".txt", ".md"))
    if not files:
        raise InputError(f"documents.source = '{path}': no .txt or .md file in this folder")
    for file in files:
        with _opened(file) as content:
            text = content.read()
        yield Text(file.name, text)


def _jsonl(path: Path, field: str) -> Iterator[Text]:
    """One JSON object a line, with the text under `field`."""
    for number, line in _numbered(path):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:  # absurd numbers, absurd nesting
            raise InputError(f"{path}:{number}: not JSON that can be read: {error}") from None
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
    if dataset in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        # It would read whatever lies in the working folder.
        raise InputError(f"{source}: a format of files, not a dataset; name the file or its folder")
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
    # JSON can spell half a surrogate pair, which is no text and which no tokenizer takes.
    return str(row[field]).encode("utf-8", "replace").decode("utf-8")


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, read as they are asked for. Only line feeds and carriage
    returns end a line: `str.splitlines` would also cut at form feeds and U+2028."""
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            yield number, line.removesuffix("\n")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: not a file")
    try:
        with path.open(encoding="utf-8-sig") as content:
            yield content
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
