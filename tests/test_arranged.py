"""Documents as a factor: a window that moves, padding, places, overlap, labels that mean nothing.
What the network sees at every step is compared with what was asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import recovery_probe as rp
from recovery_probe.documents import arrange

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


def test_offsets_are_uniform() -> None:
    drawn = arrange.offsets(256, 8, 17_000, np.random.default_rng(0))
    counts = Counter(drawn)
    assert set(counts) == set(range(128 - 8, 128 + 9))
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


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(2, 40), st.floats(0.05, 0.95))
def test_neighbours_share_what_was_asked_for(trained: int, size: int, overlap: float) -> None:
    stride = max(1, round((1 - overlap) * size))
    ids = np.arange(trained * size).reshape(trained, size)
    names = [f"d{j}" for j in range(trained)]
    if trained * stride < size:
        with pytest.raises(rp.InputError, match=r"overlap = .* fewer than"):
            arrange.sizes(
                rp.preset(
                    "quickstart",
                    documents={
                        "count": trained,
                        "tokens": size,
                        "overlap": overlap,
                        "min_tokens": 2,
                    },
                ).documents
            )
        return
    made, said = arrange.ring(ids, names, overlap)
    assert made.shape == ids.shape
    for j in range(trained):
        following = made[(j + 1) % trained]
        # The end of each is the beginning of the next, the last one's of the first.
        np.testing.assert_array_equal(made[j][stride:], following[: size - stride])
        np.testing.assert_array_equal(made[j][:stride], ids[j][: min(stride, size)])
        assert said[j].startswith(f"d{j} … d")


def test_overlap_in_a_run(tmp_path: Path) -> None:
    run = rp.fit(tiny(documents={"overlap": 0.75}, recorders=[], epochs=1), tmp_path / "run")
    tokens = run.record.tokens.values
    for j in range(T):
        shared = tokens[j][C // 4 :] == tokens[(j + 1) % T][: C - C // 4]
        assert shared.all()
    assert len(set(run.record.digest.values.tolist())) == T + H
    plain = documents()
    np.testing.assert_array_equal(tokens[T:], plain.inputs["tokens"][T:])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"window": 13}, "documents.window = 13: expected 0 to 12, half of documents.tokens"),
        ({"window": 2, "overlap": 0.5}, "documents.overlap and documents.window: one of the two"),
        ({"overlap": 0.95}, "documents.overlap = 0.95: 5 documents .* fewer than the 24 tokens"),
        ({"window": -1}, "documents.window = -1"),
        ({"overlap": 1.0}, "documents.overlap = 1.0"),
    ],
)
def test_what_cannot_be_is_refused(part: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(documents=part), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_for_a_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "ids.npy", rng.integers(0, 500, (9, 2 * C - 1)))
    part = {"source": str(tmp_path / "ids.npy"), "window": 3}
    with pytest.raises(rp.InputError, match=r"shorter than 48 tokens.*lower documents.tokens"):
        rp.fit(tiny(documents=part), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "own"),
    [("residual_stream", {"reduce": "all"}), ("attention_patterns", {"patterns": True})],
)
def test_rows_of_all_positions_need_padding(name: str, own: dict[str, Any], tmp_path: Path) -> None:
    part = {"tokens": 200, "min_tokens": 2, "padding": "none"}
    with pytest.raises(rp.InputError, match=f"recorder {name}: .* use documents.padding masked"):
        rp.fit(tiny(documents=part, recorders=[name], **{name: own}), tmp_path / "run")


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
