"""What each schedule says: orders, waits, doses; and what order alone can do."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import recovery_probe as rp
from recovery_probe import plugins
from recovery_probe.training import planned

T, E = 6, 4


def order(kind: str, count: int = T, epochs: int = E, seed: int = 0, **own: Any) -> list[int]:
    chosen = tiny(
        seed=seed, epochs=epochs, documents={"count": count}, schedule={"kind": kind, **own}
    )
    return [int(document) for document in planned(chosen).schedule]


def waits(episodes: list[int], document: int) -> list[int]:
    at = [i for i, d in enumerate(episodes) if d == document]
    return [b - a for a, b in itertools.pairwise(at)]


def epochs_of(episodes: list[int], each: int = T) -> list[list[int]]:
    return [episodes[i : i + each] for i in range(0, len(episodes), each)]


def test_those_that_draw_nothing() -> None:
    there = [0, 1, 2, 3, 4, 5]
    back = there[::-1]
    assert order("cyclic") == there * E
    assert order("reversed") == back * E
    assert order("palindrome") == there + back + there + back
    assert order("reverse_at", after=1) == there + back * 3
    assert order("interleaved", inner=2) == [0, 2, 1, 3, 0, 4, 1, 5] * 3
    assert order("omit", after=2, documents=[1, 4]) == there * 2 + [0, 2, 3, 5] * 2
    assert order("gap", after=3, size=2) == [0, 1, 2, 3] * 3 + [4, 5] + [0, 1, 2, 3]
    assert order("fresh", count=2 + 3 * E, fixed=2, new=3) == [
        *(0, 1, 2, 3, 4),
        *(0, 1, 5, 6, 7),
        *(0, 1, 8, 9, 10),
        *(0, 1, 11, 12, 13),
    ]
    assert order("yoked", count=2 + 2 * E, kept=2, slots=4) == [
        *(0, 2, 1, 3),
        *(0, 4, 1, 5),
        *(0, 6, 1, 7),
        *(0, 8, 1, 9),
    ]


def test_two_cycles_have_two_periods() -> None:
    episodes = order("interleaved", inner=2, epochs=10)
    assert len(episodes) == 60
    assert {w for d in (0, 1) for w in waits(episodes, d)} == {4}
    assert {w for d in (2, 3, 4, 5) for w in waits(episodes, d)} == {8}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 5), st.data())
def test_those_that_draw(seed: int, count: int, epochs: int, data: st.DataObject) -> None:
    whole = list(range(count))

    size = data.draw(st.integers(1, count))
    block = order("block", count, epochs, seed, size=size)
    for epoch in epochs_of(block, count):
        for start in range(0, count, size):
            assert sorted(epoch[start : start + size]) == whole[start : start + size]
    for document in whole:
        assert all(abs(wait - count) < size for wait in waits(block, document))

    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    for epoch in epochs_of(order("partial", count, epochs, seed, first=first, last=last), count):
        assert epoch[:first] + epoch[last + 1 :] == whole[:first] + whole[last + 1 :]
        assert sorted(epoch) == whole

    kept = data.draw(st.integers(1, count))
    yoked = order("yoked", count, epochs, seed, kept=kept)
    for document in range(kept):
        assert set(waits(yoked, document)) <= {count}
        assert yoked.index(document) == document * count // kept  # evenly spaced
    assert all(sorted(epoch) == whole for epoch in epochs_of(yoked, count))

    free = order("shuffled", count, epochs, seed, keep_first=True)
    assert all(e[0] == 0 and sorted(e) == whole for e in epochs_of(free, count))

    new = data.draw(st.integers(1, 4))
    for shuffled in (False, True):
        total = count + new * epochs
        fresh = order("fresh", total, epochs, seed, fixed=count, new=new, shuffled=shuffled)
        counts = np.bincount(fresh, minlength=total)
        assert (counts[:count] == epochs).all()
        assert (counts[count:] == 1).all()
        assert all(set(whole) <= set(epoch) for epoch in epochs_of(fresh, count + new))


def test_draws_differ_from_epoch_to_epoch_and_seed_to_seed() -> None:
    for kind, own in (("block", {"size": 6}), ("partial", {}), ("yoked", {"kept": 1})):
        first, *others = epochs_of(order(kind, **own))
        assert any(epoch != first for epoch in others), kind
        assert order(kind, **own) == order(kind, **own) != order(kind, seed=1, **own), kind
    first, second, third, fourth = epochs_of(order("switch_at", after=2))
    assert first == second == [0, 1, 2, 3, 4, 5]
    assert third == fourth != first
    assert sorted(third) == first


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        ("partial", {"first": 3, "last": 2}, "schedule.first = 3 and schedule.last = 2"),
        ("partial", {"last": 6}, "expected first to last of the documents 0 to 5"),
        ("interleaved", {"inner": 6}, "schedule.inner = 6: expected 1 to 5"),
        ("block", {"size": 7}, "schedule.size = 7: a block of more than the 6 documents"),
        ("yoked", {"kept": 7}, "schedule.kept = 7: more than the 6 of an epoch"),
        ("yoked", {"kept": 2, "slots": 4}, "documents.count = 6: 2 that come .* are 10"),
        ("fresh", {"fixed": 2, "new": 3}, "documents.count = 6: 2 that come .* are 14"),
        ("switch_at", {"after": 4}, "schedule.after = 4: expected 1 to 3, of the 4 epochs"),
        ("reverse_at", {"after": 9}, "schedule.after = 9: expected 1 to 3"),
        ("gap", {"size": 5}, "schedule.size = 5: leaves less than 2 of the 6 documents"),
        ("gap", {"after": 4, "size": 1}, "schedule.after = 4"),
        ("omit", {"documents": [6]}, r"schedule.documents = \[6\]: expected some of 0 to 5"),
        ("omit", {"documents": [0, 1, 2, 3, 4]}, "and 2 that are not named"),
        ("omit", {"documents": []}, "expected some of"),
    ],
)
def test_what_cannot_be_is_refused(
    kind: str, own: dict[str, Any], said: str, tmp_path: Path
) -> None:
    wanted = tiny(epochs=E, documents={"count": T}, schedule={"kind": kind, **own})
    with pytest.raises(rp.InputError, match=said):
        rp.fit(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def end_point(lr: float, kind: str, momentum: float = 0.0) -> torch.Tensor:
    """The weights after two epochs of some order, in float64."""
    wanted = tiny(
        epochs=2,
        steps=1,
        documents={"count": 3, "held_out": 0, "tokens": 16},
        model={"width": 16, "depth": 1, "heads": 2, "dtype": "float64"},
        optimizer={"lr": lr, "momentum": momentum},
        schedule={"kind": kind},
        recorders=[],
    )
    training = rp.Training.open(wanted)
    for episode in range(training.timeline.episodes):
        for step in training.steps(episode):
            training.optimizer.zero_grad()
            training.model.losses(step.inputs).sum().backward()
            training.optimizer.step()
    return torch.cat([p.detach().flatten() for p in training.model.parameters.values()])


class Mirror(rp.Schedule):
    """A palindrome that begins at its other end."""

    name = "mirror"

    def order(self, documents: int, epochs: int, rng: np.random.Generator) -> Any:
        there = np.arange(documents)
        return np.concatenate([there[:: 1 if e % 2 else -1] for e in range(epochs)])


def test_order_has_an_effect_of_the_second_power_and_a_palindrome_of_the_third(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gap between the ends of an order and of its reverse against the learning rate: slope 2
    for plain descent, 3 where the order is followed by its mirror, 1 with momentum."""
    found = plugins.find
    monkeypatch.setattr(
        plugins, "find", lambda g, s: Mirror if (g, s) == ("schedules", "mirror") else found(g, s)
    )

    def slope(one: str, other: str, **own: float) -> float:
        rates = [0.01, 0.02]
        gaps = [(end_point(r, one, **own) - end_point(r, other, **own)).norm() for r in rates]
        return float(torch.log2(gaps[1] / gaps[0]))

    assert slope("cyclic", "reversed") == pytest.approx(2, abs=0.1)
    assert slope("palindrome", "mirror") == pytest.approx(3, abs=0.15)
    assert slope("cyclic", "reversed", momentum=0.9) == pytest.approx(1, abs=0.1)
