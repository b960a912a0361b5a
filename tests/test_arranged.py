"""Documents as a factor: a window that moves, padding, places, overlap, labels that mean nothing.
What the network sees at every step is compared with what was asked for."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import recovery_probe as rp
from recovery_probe.documents import load as load_documents
from recovery_probe.record.folder import checkpoint_folder
from recovery_probe.testing import toy_settings as tiny

C, T, H = 24, 5, 2


class Seen(rp.Recorder):
    """Keeps what each step was given."""

    name = "seen"
    steps: list[rp.Step] = []  # noqa: RUF012

    def start(self, training: rp.Training) -> rp.Layout:
        Seen.steps = []
        return rp.Layout()

    def before_step(self, step: rp.Step) -> None:
        Seen.steps.append(step)


class Ids(rp.Recorder):
    """Keeps the ids that the embedding gets."""

    name = "ids"
    found: list[list[int]] = []  # noqa: RUF012

    def start(self, training: rp.Training) -> rp.Layout:
        Ids.found = []
        training.model.bridge.original_model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: Ids.found.append(given[0][0].tolist()) if training.passing else None
        )
        return rp.Layout()


def documents(**changes: Any) -> Any:
    return rp.Training.open(tiny(**{"recorders": [], **changes})).documents


def test_a_window_moves_and_its_middle_is_evaluated(tmp_path: Path) -> None:
    w = 5
    run = rp.fit(
        tiny(epochs=4, documents={"window": w}, recorders=[]), tmp_path / "run", hooks=[Seen]
    )
    record = run.record
    around, tokens = record.around.values, record.tokens.values
    assert around.shape == (T + H, 2 * C)
    np.testing.assert_array_equal(tokens, around[:, C // 2 : C // 2 + C])
    assert record.mask.values.all()
    found = []
    for step in Seen.steps:
        ids = step.inputs["tokens"][0].tolist()
        assert len(ids) == C == step.length
        (offset,) = (o for o in range(C + 1) if around[step.document, o : o + C].tolist() == ids)
        found.append(offset - C // 2)
    assert set(found) <= set(range(-w, w + 1))
    assert len(set(found[:3])) > 1  # drawn at every step
    # What is evaluated is what a run of those middles evaluates.
    rows = [{"text": "", "ids": row} for row in tokens.tolist()]
    np.save(tmp_path / "middles.npy", np.array([row["ids"] for row in rows]))
    plain = rp.fit(
        tiny(documents={"source": str(tmp_path / "middles.npy")}, recorders=[], epochs=1),
        tmp_path / "plain",
    )
    ours = {tuple(t): loss for t, loss in zip(tokens.tolist(), run.losses.values[0], strict=True)}
    theirs = plain.record.tokens.values.tolist()
    for row, loss in zip(theirs, plain.losses.values[0], strict=True):
        assert ours[tuple(row)] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("w", [2, C // 2])
def test_offsets_are_uniform(w: int, rows: str) -> None:
    """Of an odd C too, whoever takes the steps: pairwise recovery does so as this does."""
    part = {"source": rows, "tokens": 19 if w == 2 else 20, "window": min(w, 10), "min_tokens": 2}
    training = rp.Training.open(tiny(steps=1000, documents=part, recorders=[]))
    size, w = part["tokens"], part["window"]
    counts: Counter[int] = Counter()
    for document in range(3):
        around = training.documents.inputs["around"][document].tolist()
        for step in training.steps_on(document, f"dropout of document {document}", 0):
            (ids,) = step.inputs["tokens"].tolist()
            assert {name: len(v[0]) for name, v in step.inputs.items()} == {
                "tokens": size,
                "mask": size,
            }
            start = around.index(ids[0])  # no two tokens are alike
            assert ids == around[start : start + size]
            counts[start - size // 2] += 1
    assert set(counts) == set(range(-w, w + 1))
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_a_window_that_does_not_move_is_a_plain_run(tmp_path: Path) -> None:
    """Of the middles, in the same places."""
    still = rp.fit(tiny(documents={"window": 0}), tmp_path / "still")
    np.save(tmp_path / "middles.npy", still.record.tokens.values)
    plain = rp.Training.open(
        tiny(documents={"source": str(tmp_path / "middles.npy")}), tmp_path / "x"
    )
    order = [
        plain.documents.inputs["tokens"].tolist().index(row)
        for row in still.record.tokens.values.tolist()
    ]
    for name, values in plain.inputs.items():
        plain.inputs[name] = values[order]
    rows = [plain.evaluate()]
    for episode in range(plain.timeline.episodes):
        for step in plain.steps(episode):
            plain.optimizer.zero_grad()
            plain.model.losses(step.inputs).sum().backward()
            plain.optimizer.step()
        rows.append(plain.evaluate())
    np.testing.assert_array_equal(still.losses.values, np.array(rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": {"window": 7}},
        {"interventions": ["shuffle_labels"]},
        {"documents": {"window": 3}, "interventions": ["shuffle_labels", "mask"]},
    ],
)
def test_they_are_resumed_and_replayed_to_the_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    wanted = tiny(recorders=["checkpoints"], **changes)
    whole = rp.fit(wanted, tmp_path / "whole")

    class Stops(rp.Recorder):
        name = "stops"

        def start(self, training: rp.Training) -> rp.Layout:
            self.training = training
            return rp.Layout()

        def after_step(self, step: rp.Step) -> None:
            self.training.stopping = step.episode == 6

    with pytest.raises(rp.Interrupted):
        rp.fit(wanted, tmp_path / "run", hooks=[Stops])
    run = rp.open_run(tmp_path / "run").resume(hooks=[Stops])
    np.testing.assert_array_equal(run.losses, whole.losses)
    np.testing.assert_array_equal(run.train_loss, whole.train_loss)
    again = whole.replay(record=["gradients"], episodes=(6, 9))
    assert "bit for bit" in json.dumps(dict(again.gradients.attrs))


def test_without_padding_a_step_has_the_documents_tokens_alone(tmp_path: Path) -> None:
    part = {"tokens": 200, "min_tokens": 2}
    padded = rp.fit(tiny(documents=part, recorders=[], epochs=1), tmp_path / "padded")
    cut = rp.fit(
        tiny(documents={**part, "padding": "none"}, recorders=[], epochs=1),
        tmp_path / "cut",
        hooks=[Seen],
    )
    lengths = cut.record.length.values
    assert (lengths[:T] < 200).any()
    for step in Seen.steps:
        assert step.inputs["tokens"].shape == step.inputs["mask"].shape == (1, step.length)
        assert step.length == lengths[step.document]
    np.testing.assert_allclose(cut.losses, padded.losses, atol=1e-5)
    np.testing.assert_allclose(cut.train_loss, padded.train_loss, atol=1e-5)


def test_other_places_for_the_same_documents() -> None:
    plain = documents()
    moved = documents(documents={"permute": 3})
    assert moved.names != plain.names
    assert sorted(moved.names[:T]) == sorted(plain.names[:T])
    assert moved.names[T:] == plain.names[T:]
    assert moved.names == documents(documents={"permute": 3}).names
    assert moved.names != documents(documents={"permute": 4}).names
    for name, tokens in zip(moved.names, moved.inputs["tokens"], strict=True):
        at = plain.names.index(name)
        np.testing.assert_array_equal(tokens, plain.inputs["tokens"][at])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten documents of 40 tokens, no two tokens alike."""
    path = tmp_path_factory.mktemp("rows") / "ids.npy"
    np.save(path, np.arange(400).reshape(10, 40))
    return str(path)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 8), st.integers(2, 30), st.integers(0, 99), st.integers(0, 3))
def test_neighbours_share_what_was_asked_for(
    rows: str, trained: int, size: int, percent: int, permute: int
) -> None:
    """The oracle lays the documents out on a ring in a plain loop, and counts."""
    part = {"source": rows, "count": trained, "held_out": 2, "tokens": size, "permute": permute}

    def load(**changes: Any) -> Any:
        wanted = tiny(documents={**part, "min_tokens": 2, **changes})
        return load_documents(wanted, lambda text: [])

    shared = percent * size // 100
    stride = size - shared
    if (trained - 1) * stride < size:
        assert Fraction(percent, 100) > Fraction(trained - 2, trained - 1)
        with pytest.raises(rp.InputError, match=rf"documents.overlap = {percent / 100}: .* lower"):
            load(overlap=percent / 100)
        return
    drawn = load(permute=0)
    own = drawn.inputs["tokens"].tolist()
    line = [token for j in range(trained) for token in own[j][:stride]]
    ring = [[line[(j * stride + i) % len(line)] for i in range(size)] for j in range(trained)]
    made = load(overlap=percent / 100, permute=0)
    assert made.inputs["tokens"].tolist() == ring + own[trained:]
    if trained > 2:
        for j in range(trained):
            assert len({*ring[j]} & {*ring[(j + 1) % trained]}) == shared
    for j in range(trained if shared else 0):
        holders = [k for k in range(trained) if {*own[k]} & {*ring[j]}]
        first, last = made.names[j].split(" … ")
        assert first == drawn.names[j]
        assert drawn.names.index(last) in holders
        assert ring[j][-1] in own[drawn.names.index(last)]
    # Other places, the same documents.
    moved = load(overlap=percent / 100)
    at = [made.names.index(name) for name in moved.names]
    assert sorted(at[:trained]) == list(range(trained))
    assert at[trained:] == list(range(trained, trained + 2))
    assert moved.inputs["tokens"].tolist() == [made.inputs["tokens"].tolist()[i] for i in at]


def test_no_token_is_lost_to_rounding() -> None:
    """0.29 * 100 is 28.999999999999996."""
    assert tiny(documents={"tokens": 100, "overlap": 0.29}).documents.shared == 29


def test_overlap_in_a_run(tmp_path: Path) -> None:
    run = rp.fit(tiny(documents={"overlap": 0.75}, recorders=[], epochs=1), tmp_path / "run")
    tokens = run.record.tokens.values
    for j in range(T):
        shared = tokens[j][C // 4 :] == tokens[(j + 1) % T][: C - C // 4]
        assert shared.all()
    assert len(set(run.record.digest.values.tolist())) == T + H
    # It has no text of its own: none is shown.
    assert [bool(text) for text in run.record.excerpt.values] == [False] * T + [True] * H
    assert "neighbours share 0.75" in run.summary()["documents"]
    plain = documents()
    np.testing.assert_array_equal(tokens[T:], plain.inputs["tokens"][T:])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"window": 13}, "documents.window = 13: expected 0 to 12, half of documents.tokens"),
        (
            {"window": 2, "overlap": 0.5},
            "overlap = 0.5 and documents.window = 2: .* one of the two",
        ),
        ({"overlap": 0.8}, "documents.overlap = 0.8: .* of 5 documents share 0.75 at most"),
        ({"overlap": 0.5, "count": 2}, "of 2 documents share 0.0 at most"),
        ({"window": -1}, "documents.window = -1"),
        ({"overlap": 1.0}, "documents.overlap = 1.0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(part: dict[str, Any], said: str) -> None:
    with pytest.raises(rp.InputError, match=said):
        tiny(documents=part)


def test_too_few_for_a_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "ids.npy", rng.integers(0, 500, (9, 2 * C - 1)))
    part = {"source": str(tmp_path / "ids.npy"), "window": 3}
    with pytest.raises(rp.InputError, match=r"shorter than 48 tokens.*lower documents.tokens"):
        rp.fit(tiny(documents=part), tmp_path / "run")


def test_every_token_that_a_window_may_show_is_known(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 250, (T + H, 2 * C))
    ids[0, -1] = 9999  # never in the middle
    np.save(tmp_path / "ids.npy", ids)
    part = {"source": str(tmp_path / "ids.npy"), "window": 0}
    with pytest.raises(rp.InputError, match="token 9999, and the network has embeddings for"):
        rp.fit(tiny(documents=part), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "own"),
    [("residual_stream", {"reduce": "all"}), ("attention_patterns", {"patterns": True})],
)
@pytest.mark.parametrize("alike", [False, True])
def test_rows_of_all_positions_need_padding(
    name: str, own: dict[str, Any], alike: bool, rows: str, tmp_path: Path
) -> None:
    part = {"tokens": 200, "min_tokens": 2, "padding": "none"}
    part |= {"source": rows} if alike else {}
    with pytest.raises(rp.InputError, match=f"recorder {name}: .* use documents.padding masked"):
        rp.fit(tiny(documents=part, recorders=[name], **{name: own}), tmp_path / "run")


def test_one_label_cannot_be_shuffled(tmp_path: Path) -> None:
    part = {"tokens": 2, "min_tokens": 2}
    wanted = tiny(documents=part, interventions=["shuffle_labels"], recorders=[])
    with pytest.raises(rp.InputError, match=r"a document of 2 tokens.*raise documents.min_tokens"):
        rp.fit(wanted, tmp_path / "run")


def test_what_unlearns_its_documents_is_not_called_diverged(tmp_path: Path) -> None:
    """A network that knows them, then trained towards other labels: each epoch is worse than it
    was, and nothing is wrong."""
    knows = rp.fit(tiny(epochs=12, recorders=["checkpoints"]), tmp_path / "knows")
    model = {"source": str(checkpoint_folder(knows.path, knows.episodes_done))}
    again = {"model": model, "interventions": ["shuffle_labels"], "recorders": [], "epochs": 3}
    run = rp.fit(tiny(**again), tmp_path / "run")
    means = run.losses.values[:, :T].mean(1)
    assert run.status == "complete"
    assert (means[1:] > means[0]).all()


def test_shuffled_labels_are_of_the_document_and_new_at_every_visit(tmp_path: Path) -> None:
    from recovery_probe.interventions import acting

    training = rp.Training.open(
        tiny(interventions=["shuffle_labels"], documents={"tokens": 200, "min_tokens": 2})
    )
    interventions = acting.Interventions(acting.find(training.settings), training)
    wanted: dict[int, list[list[int]]] = {}
    for episode in range(2 * T):
        for step in training.steps(episode):
            own = step.inputs["tokens"][0, : step.length].tolist()
            labels = interventions.wanted(step)["tokens"][0].tolist()
            assert torch.equal(interventions.shown(step)["tokens"], step.inputs["tokens"])
            assert labels[0] == own[0]
            assert labels[step.length :] == step.inputs["tokens"][0, step.length :].tolist()
            labels = labels[: step.length]
            assert sorted(labels) == sorted(own)
            wanted.setdefault(step.document, []).append(labels)
            # By hand: at each position the network is asked for the label that comes next.
            loss = training.model.losses(interventions.wanted(step), interventions.shown(step))
            logits = training.model.logits(step.inputs)[0, : step.length - 1].float()
            byhand = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]))
            assert loss.item() == pytest.approx(byhand.item(), abs=1e-5)
    for visits in wanted.values():
        first, second = visits[:3], visits[3:]
        assert first[0] == first[1] == first[2]  # of one visit
        assert second[0] == second[2] != first[0]


def test_the_network_sees_the_document_itself(tmp_path: Path) -> None:
    run = rp.fit(
        tiny(interventions=["shuffle_labels"], recorders=[], epochs=1),
        tmp_path / "run",
        hooks=[Ids],
    )
    tokens = run.record.tokens.values
    seen = [ids for ids in Ids.found if len(ids) == C][:3]
    assert all(ids in tokens.tolist() for ids in seen)
    plain = rp.fit(tiny(recorders=[], epochs=1), tmp_path / "plain")
    assert run.losses.values[0].tolist() == plain.losses.values[0].tolist()
    assert run.train_loss.values[0] != plain.train_loss.values[0]
