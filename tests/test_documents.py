"""Every source of documents, on small real files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe import documents

TEXTS = [f"Document number {i}. " + "It tells of many things. " * (i + 1) for i in range(12)]


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def load(source: object, **changes: object) -> documents.Documents:
    wanted = {"source": str(source), "count": 4, "held_out": 2, "tokens": 50, "min_tokens": 2}
    return documents.load(tiny(documents={**wanted, **changes}), characters)


def make(kind: str, folder: Path) -> Path:
    if kind == "lines":
        path = folder / "texts.txt"
        path.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    elif kind == "jsonl":
        path = folder / "texts.jsonl"
        path.write_text("\n".join(json.dumps({"text": t, "id": 1}) for t in TEXTS))
    else:
        path = folder / "texts"
        path.mkdir()
        for i, text in enumerate(TEXTS):
            (path / f"{i:02}.txt").write_text(text)
        (path / "notes.csv").write_text("not a document")
    return path


@pytest.mark.parametrize("kind", ["lines", "jsonl", "folder"])
def test_files(kind: str, tmp_path: Path) -> None:
    docs = load(make(kind, tmp_path))
    assert docs.tokens.shape == (6, 50)
    assert {t.text for t in docs.texts} < set(TEXTS)
    assert len({t.name for t in docs.texts}) == 6
    for row, length, text in zip(docs.tokens, docs.lengths, docs.texts, strict=True):
        assert row[:length].tolist() == characters(text.text)[:50]
        assert not row[length:].any()
    assert docs.digests[0] == hashlib.sha256(docs.texts[0].text.encode()).hexdigest()


def test_a_hub_dataset_through_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "\n".join(json.dumps({"article": t}) for t in TEXTS)
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    docs = load(f"hf:{tmp_path}:article")
    assert {t.text for t in docs.texts} < set(TEXTS)
    assert load(f"hf:{tmp_path}:default:article").digests == docs.digests
    with pytest.raises(rp.InputError, match="article"):
        load(f"hf:{tmp_path}")


def test_python_topics_are_chosen_by_the_seed() -> None:
    settings = tiny(documents={"count": 20})
    one, same = (documents.load(settings, characters) for _ in range(2))
    other = documents.load(tiny(documents={"count": 20}, seed=1), characters)
    assert one.digests == same.digests
    assert one.digests != other.digests
    assert len(set(one.digests)) == 22


@pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="the extra `lee`")
def test_lee() -> None:
    docs = load("lee", count=200, held_out=50)
    assert len(set(docs.digests)) > 240
    assert all(len(t.text) > 100 for t in docs.texts)


def test_short_documents_are_padded_or_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(["abcd"] * 3 + ["a" * 60] * 7))
    padded = load(path, count=8)
    assert sorted(set(padded.lengths.tolist())) == [4, 50]
    assert padded.left_out == 0
    kept = load(path, min_tokens=50)
    assert set(kept.lengths.tolist()) == {50}
    assert kept.left_out == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 11}, "has 12 that will do: ask for fewer"),
        ({"min_tokens": 2000}, r"12 are shorter than 2000 tokens.*lower documents.min_tokens"),
    ],
)
def test_too_few(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(rp.InputError, match=said):
        load(make("lines", tmp_path), **changes)


def test_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{not json}\n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    for name, said in {
        "missing.txt": "no such file or folder",
        "empty": "no .txt or .md file",
        "bytes.txt": "cannot be read as UTF-8",
        "bad.jsonl": "bad.jsonl:2: not JSON",
        "list.jsonl": "a list, not an object",
    }.items():
        with pytest.raises(rp.InputError, match=said):
            load(tmp_path / name)
    with pytest.raises(rp.InputError, match=r"set documents\.field to one of: text"):
        load(make("jsonl", tmp_path), field="body")


def test_padding_has_no_loss(tmp_path: Path) -> None:
    """A padded document has the loss it has alone: the run's first row says so."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    wide = {"source": str(path), "min_tokens": 2, "tokens": 200}
    run = rp.fit(tiny(epochs=1, documents=wide), tmp_path / "wide")
    lengths = run.record.length.values
    assert len(set(lengths.tolist())) > 1
    narrow = rp.fit(
        tiny(epochs=1, documents={**wide, "tokens": int(lengths.max())}), tmp_path / "narrow"
    )
    np.testing.assert_allclose(run.losses.values, narrow.losses.values, atol=1e-5)
