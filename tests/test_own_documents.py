"""Documents of one's own: rows of tokens, and sources as plug-ins."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import ALL, tiny
from test_documents import load

import recovery_probe as rp
from recovery_probe import documents, plugins


def rows_of(path: Path, rows: object) -> Path:
    np.save(path, rows)
    return path


def test_token_rows_need_no_tokenizer(tmp_path: Path) -> None:
    """One with an end of its own, one that fills its row, rows that are too short; longer than C is
    cut."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 200, (9, 80)).astype(np.int16)
    rows[3, 30:], rows[5, 1:], rows[6] = -1, -1, -1
    path = rows_of(tmp_path / "rows.npy", rows)

    def never(text: str) -> list[int]:
        raise AssertionError("a tokenizer was asked")

    part = {"source": str(path), "count": 5, "held_out": 2, "tokens": 50, "min_tokens": 2}
    docs = documents.load(tiny(documents=part), never)
    numbers = [int(name.removeprefix("rows.npy:")) for name in docs.names]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 7, 8]
    for tokens, mask, number in zip(
        docs.inputs["tokens"], docs.inputs["mask"], numbers, strict=True
    ):
        end = 30 if number == 3 else 50
        assert tokens[:end].tolist() == rows[number, :end].tolist()
        assert not tokens[end:].any()
        assert mask.tolist() == [True] * end + [False] * (50 - end)
    assert docs.texts == ("",) * 7
    assert len(set(docs.digests)) == 7
    assert docs.digests == documents.load(tiny(documents=part), never).digests


def test_a_network_is_given_token_rows_as_it_is_given_text(tmp_path: Path) -> None:
    part = {"count": 4, "held_out": 2, "tokens": 500, "min_tokens": 2}
    text = rp.fit(tiny(epochs=1, documents=part, recorders=[]), tmp_path / "text")
    assert len(set(text.record.length.values)) > 1
    rows = np.where(text.record.mask, text.record.tokens, -1)
    part["source"] = str(rows_of(tmp_path / "rows.npy", rows))
    run = rp.fit(tiny(epochs=1, documents=part, recorders=ALL), tmp_path / "rows")
    numbers = [int(name.partition(":")[2]) for name in run.record.name.values]
    assert np.array_equal(run.losses[0], text.losses[0][numbers])
    assert np.array_equal(run.record.tokens, text.record.tokens[numbers])
    assert np.array_equal(run.record.length, text.record.length[numbers])
    unpredicted = ~run.record.mask.values | (run.record.position.values == 0)
    assert (run.token_losses.loss.isnull() == unpredicted).all()


BAD_ROWS = {
    "floats": (np.ones((9, 80)), r"float64 of shape \(9, 80\); expected token ids"),
    "truth values": (np.ones((9, 80), dtype=bool), "bool of shape"),
    "one row": (np.arange(80), r"int64 of shape \(80,\); expected .*\(document, position\)"),
    "a cube": (np.ones((2, 3, 4), dtype=int), r"shape \(2, 3, 4\)"),
    "objects": (np.array([[1, None]] * 9), "cannot be read as an array"),
    "tokens past an end": (
        np.array([[1, -1, 2]] * 9),
        "row 0 has tokens past its end, at position 1",
    ),
    "absurd": (np.full((9, 80), 2**63, dtype=np.uint64), "token 9223372036854775808"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_rows_that_are_no_tokens(what: str, tmp_path: Path) -> None:
    rows, said = BAD_ROWS[what]
    with pytest.raises(rp.InputError, match=said):
        load(rows_of(tmp_path / "rows.npy", rows))


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("Once upon a time")
    np.savez(tmp_path / "several.npz", np.ones((9, 80), dtype=int))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    (tmp_path / "pickled.npy").write_bytes(pickle.dumps(Runs()))
    for name in ("empty", "text", "several", "pickled"):
        with pytest.raises(rp.InputError, match=rf"{name}\.npy: cannot be read as an array"):
            load(tmp_path / f"{name}.npy")
    assert not marker.exists()


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 512, (9, 24))
    rows[:, 5] = 512
    part = {"source": str(rows_of(tmp_path / "rows.npy", rows))}
    said = r"rows\.npy': token 512, and the network has embeddings for 512 tokens"
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(documents=part), tmp_path / "run")
    assert not (tmp_path / "run").exists()


SOURCES = """
from dataclasses import dataclass
from recovery_probe import Source, Text, Tokens

@dataclass
class Mine(Source):
    name = "mine"
    # how often
    times: int = 8

    def read(self, address):
        for i in range(self.times):
            yield Tokens(f"{address}/{i}", tuple([i] * (9 + i)))

class Fails(Mine):
    def read(self, address):
        yield Text("one", "a text of its own, long enough")
        raise RuntimeError("the wire was cut")

class Leaves(Mine):
    def read(self, address):
        raise SystemExit(0)

class Strings(Mine):
    def read(self, address):
        yield "a string"

class Halves(Mine):
    def read(self, address):
        yield Tokens("halves", (0.5, 1.5))

class Negative(Mine):
    def read(self, address):
        yield Tokens("negative", (3, -1))

class Nothing(Mine):
    def read(self, address):
        return None
"""


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    """With settings of its own, and none of the others'."""
    (tmp_path / "mine.py").write_text(SOURCES)
    docs = load(f"{tmp_path}/mine.py:Mine", times=9)
    assert docs.names[0].startswith("/")
    assert docs.left_out == {"too_short": 0, "duplicates": 0, "near_duplicates": 0}
    with pytest.raises(rp.InputError, match=r"unknown setting documents\.field.*mine has times"):
        load(f"{tmp_path}/mine.py:Mine", field="text")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Fails", "source mine failed: RuntimeError: the wire was cut"),
        ("Leaves", "source mine failed: SystemExit: 0"),
        ("Strings", "source mine gave a str"),
        ("Halves", r"source mine: halves: token 0\.5"),
        ("Negative", "source mine: negative: token -1"),
        ("Nothing", "source mine failed: TypeError"),
    ],
)
def test_a_source_that_fails_is_named(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCES)
    with pytest.raises(rp.InputError, match=said):
        load(f"{tmp_path}/mine.py:{kind}")


def test_an_installed_source_is_given_what_stands_behind_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_source.py").write_text(SOURCES)
    info = tmp_path / "their_source-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recovery_probe.documents]\nmine = their_source:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.installed.cache_clear()
    try:
        docs = load("mine:some:where", times=6)
        assert {name.partition("/")[0] for name in docs.names} == {"some:where"}
        assert load("mine").names[0].startswith("/")
    finally:
        plugins.installed.cache_clear()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("python-topics:assert", "python-topics takes nothing behind its name; got 'assert'"),
        ("lee:3", "lee takes nothing behind its name; got '3'"),
        ("", "names no file or folder"),
        ("files", "names no file or folder"),
        ("python-topic", "did you mean 'python-topics'"),
    ],
)
def test_sources_that_are_none(source: str, said: str) -> None:
    with pytest.raises(rp.InputError, match=said):
        load(source)
