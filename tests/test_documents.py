"""Every source of documents, on small real files."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import itertools
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe import documents
from recovery_probe.documents.files import Files
from recovery_probe.documents.source import Text
from recovery_probe.documents.topics import python_topics
from recovery_probe.models import train_tokenizer


def random_text(i: int, length: int) -> str:
    return "".join(random.Random(i).choices("abcdefghijklmnop ", k=length))


TEXTS = [random_text(i, 30 + 60 * i) for i in range(12)]


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def load(source: object, **changes: object) -> documents.Documents:
    wanted = {"source": str(source), "count": 4, "held_out": 2, "tokens": 50, "min_tokens": 2}
    return documents.load(tiny(documents={**wanted, **changes}), characters)


def read(path: Path) -> list[str]:
    """Every text of a file or folder."""
    return [document.text for document in Files().read(str(path))]


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
    assert docs.inputs["tokens"].shape == (6, 50)
    assert set(docs.texts) < set(TEXTS)
    assert len(set(docs.names)) == 6
    for row, length, text in zip(docs.inputs["tokens"], docs.lengths, docs.texts, strict=True):
        assert row[:length].tolist() == characters(text)[:50]
        assert not row[length:].any()
    assert docs.digests[0] == hashlib.sha256(docs.texts[0].encode()).hexdigest()


def test_a_hub_dataset_through_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "\n".join(json.dumps({"article": t}) for t in TEXTS)
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    docs = load(f"hf:{tmp_path}:article")
    assert set(docs.texts) < set(TEXTS)
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
    tokenizer = train_tokenizer(4096)
    settings = tiny(documents={"source": "lee", "count": 200, "held_out": 50, "tokens": 64})
    docs = documents.load(settings, lambda text: tokenizer(text)["input_ids"])
    assert len({tuple(row) for row in docs.inputs["tokens"].tolist()}) == 250
    assert all(len(text) > 100 for text in docs.texts)
    assert docs.left_out["duplicates"] > 0  # the corpus has several articles twice


def test_short_documents_are_padded_or_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    short, long = ["abcd", "efgh", "ijkl"], [random_text(i, 60) for i in range(6)]
    path.write_text("\n".join(short + long))
    padded = load(path, count=7)
    assert sorted(set(padded.lengths.tolist())) == [4, 50]
    assert set(padded.left_out.values()) == {0}
    kept = load(path, min_tokens=50)
    assert set(kept.lengths.tolist()) == {50}
    assert 0 < kept.left_out["too_short"] <= 3
    with pytest.raises(rp.InputError, match=r"has 6 that will do \(3 are shorter than 50 tokens"):
        load(path, min_tokens=50, count=5)


def test_copies_and_near_copies_are_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    """Each group of lines says one thing: whichever is drawn first, one of them is taken."""
    a, b, c, d, e, f = (random_text(i, 60) for i in range(6))
    groups = [
        [a, a, a[:50] + "an end beyond the tokens that are kept"],
        [b, b[:20] + "!" + b[21:40] + "!" + b[41:]],  # two characters changed
        [c, "One. " + c],  # moved along
        [d, d[:15]],  # a piece
        [e],
        [f],
    ]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(line for group in groups for line in group))
    for seed in range(8):
        wanted = {"source": str(path), "count": 4, "held_out": 2, "tokens": 50, "min_tokens": 2}
        docs = documents.load(tiny(seed=seed, documents=wanted), characters)
        where = {i for t in docs.texts for i, group in enumerate(groups) if t in group}
        assert where == set(range(6))
    with pytest.raises(rp.InputError, match="2 are copies of another, 3 are nearly copies"):
        load(path, count=5)


def test_no_held_out_document_of_the_quickstart_is_nearly_a_trained_one() -> None:
    """The oracle is difflib, by length of what two documents have in common in order."""
    settings = rp.preset("quickstart")
    tokenizer = train_tokenizer(settings.model.vocabulary)
    docs = documents.load(settings, lambda text: tokenizer(text)["input_ids"])
    rows = docs.inputs["tokens"].tolist()
    likeness = [
        difflib.SequenceMatcher(None, trained, held_out, autojunk=False).ratio()
        for trained, held_out in itertools.product(rows[:20], rows[20:])
    ]
    assert max(likeness) < 0.5  # "break" would have .78 with "continue"
    assert "continue" in docs.names[:20]
    assert docs.left_out["near_duplicates"] == 1


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


def test_pool_is_named_when_it_is_the_limit(tmp_path: Path) -> None:
    said = r"has 5 that will do among its first 5 \(documents.pool\).*or raise documents.pool"
    with pytest.raises(rp.InputError, match=said):
        load(make("lines", tmp_path), pool=5)


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    marks = "\u2028\u2029\x85\x0b\x0c\x1c"
    texts = [t[:10] + mark + t[10:] for t, mark in zip(TEXTS, marks, strict=False)]
    (tmp_path / "a.txt").write_text("\r\n".join(texts), newline="", encoding="utf-8")
    rows = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for name in ("a.txt", "a.jsonl"):
        assert read(tmp_path / name) == texts


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "One"}', encoding="utf-8-sig")
    for source in (tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path):
        assert read(source) == ["One"]


def test_a_file_is_read_as_far_as_pool(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": t}) for t in TEXTS]
    path.write_text("\n".join([*rows[:6], "not JSON", *rows[6:]]))
    assert len(load(path, pool=6).texts) == 6


def test_long_texts_are_not_tokenised_whole(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(random_text(i, 200_000) for i in range(6)))
    asked: list[int] = []

    def counting(text: str) -> list[int]:
        asked.append(len(text))
        return characters(text)

    wanted = {"source": str(path), "count": 4, "held_out": 2, "tokens": 50, "min_tokens": 60}
    docs = documents.load(tiny(documents=wanted), counting)
    assert sum(asked) < 20_000
    assert docs.inputs["tokens"][0].tolist() == characters(docs.texts[0])[:50]


def test_the_first_tokens_of_a_long_text_are_the_whole_texts() -> None:
    """With a tokenizer that joins many characters, and one that is nowhere near a word's end."""
    tokenizer = train_tokenizer(4096)

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, verbose=False)["input_ids"])

    def first_tokens(text: str) -> list[int]:
        return documents.first_tokens(Text("", text), tokenize, 24)

    topics = "\n".join(t.text for t in python_topics())
    for text in (topics, " " * 30_000 + topics, "=" * 50_000, topics.replace(" ", "")):
        assert first_tokens(text) == tokenize(text)[:24]
    lines = "\n".join("x" * (700 + i) for i in range(60))  # a token of its length for each line
    lengths = documents.first_tokens(
        Text("lines", lines), lambda text: [len(t) for t in text.split("\n")], 24
    )
    assert lengths == list(range(700, 724))


def test_blank_texts_are_no_documents(tmp_path: Path) -> None:
    folder = make("folder", tmp_path)
    for i in range(20):
        (folder / f"blank{i}.txt").write_text(" \n\x0c\n")
    assert all(text.strip() for text in load(folder, count=10).texts)


def test_half_a_surrogate_pair_reaches_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"\ud800 {t}"}) for t in TEXTS))
    tokenizer = train_tokenizer(300)
    wanted = {"source": str(path), "count": 4, "held_out": 2, "min_tokens": 2}
    docs = documents.load(tiny(documents=wanted), lambda text: tokenizer(text)["input_ids"])
    assert docs.texts[0].startswith("? ")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for kind in ("pipe", "folder"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "a.txt").write_text("A text")
        if kind == "pipe":
            os.mkfifo(folder / "b.txt")
        else:
            (folder / "b.txt").mkdir()
        with pytest.raises(rp.InputError, match=r"b\.txt: not a file"):
            load(folder)


def test_a_format_is_not_a_dataset_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private.json").write_text(json.dumps([{"text": t} for t in TEXTS]))
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(rp.InputError, match=r"hf:json:text.*a format of files, not a dataset"):
        load("hf:json:text")
    assert time.monotonic() - start < 10


def test_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{not json}\n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "long.jsonl").write_text('{"text": "a", "id": ' + "9" * 5000 + "}\n")
    (tmp_path / "deep.jsonl").write_text('{"text": "a", "id": ' + "[" * 100_000 + "\n")
    for name, said in {
        "missing.txt": "no such file or folder",
        "empty": "no .txt or .md file",
        "bytes.txt": "cannot be read as UTF-8",
        "bad.jsonl": "bad.jsonl:2: not JSON",
        "list.jsonl": "a list, not an object",
        "long.jsonl": "long.jsonl:1: not JSON that can be read",
        "deep.jsonl": "deep.jsonl:1: not JSON that can be read",
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


@pytest.mark.parametrize("name", ["tokens", "pool"])
def test_absurd_counts_are_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(rp.InputError, match=rf"documents\.{name} = 10+: should be less than"):
        tiny(documents={name: 10**18})
