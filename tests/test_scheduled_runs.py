"""A run of each schedule: its epochs, what is due by them, and what every analysis says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny

import recovery_probe as rp
from recovery_probe import plugins, stats
from recovery_probe.analyze import analyze, estimate, picture
from recovery_probe.errors import Diverged
from recovery_probe.record.layout import Timeline
from recovery_probe.schedules import planned
from recovery_probe.train.guards import check_below_untrained

E, M, H = 3, 2, 2
# Kind -> its settings, the documents, and the episodes of each epoch.
ALL: dict[str, tuple[dict[str, Any], int, list[int]]] = {
    "cyclic": ({}, 5, [5, 5, 5]),
    "shuffled": ({}, 5, [5, 5, 5]),
    "partial": ({"first": 1, "last": 3}, 5, [5, 5, 5]),
    "reversed": ({}, 5, [5, 5, 5]),
    "palindrome": ({}, 5, [5, 5, 5]),
    "interleaved": ({"inner": 2}, 5, [5, 5, 5]),
    "block": ({"size": 2}, 5, [5, 5, 5]),
    "yoked": ({"kept": 2}, 5, [5, 5, 5]),
    "fresh": ({"fixed": 4, "new": 2}, 10, [6, 6, 6]),
    "switch_at": ({"after": 1}, 5, [5, 5, 5]),
    "reverse_at": ({"after": 2}, 5, [5, 5, 5]),
    "gap": ({"after": 2, "size": 1}, 5, [4, 5, 4]),
    "omit": ({"after": 1, "documents": [2]}, 5, [5, 4, 4]),
    "listed": ({"documents": [4, 0, 1, 2, 3] * 3}, 5, [5, 5, 5]),
}
UNEVEN = {"interleaved", "fresh", "gap", "omit"}
# The even schedules beside which analyses are asked that train again: one that is no cycle, and one
# whose order changes in mid-run.
AGAIN = ("palindrome", "reverse_at")
# What each analysis says that it lacks, of an uneven schedule.
LACKING = {
    "online_loss": "equally often",
    **dict.fromkeys(
        (
            *("activation_similarity", "gradient_similarity", "pairwise_recovery"),
            *("step_sizes", "weight_cyclicity", "weight_residuals"),
            *("linearised", "kernel_by_lag", "transplant"),
        ),
        "does not train on each document once",
    ),
}
RECORDERS = (
    *("gradients", "weight_deltas", "residual_stream", "token_losses", "document_gradients"),
    *("allocation", "readout", "state_return", "checkpoints"),
)


def of(kind: str, epochs: int = E, **changes: Any) -> rp.Settings:
    own, count, _ = ALL[kind]
    small: dict[str, Any] = {
        "steps": M,
        "sketch": 15,
        "documents": {"count": count, "held_out": H, "tokens": 12, "min_tokens": 12},
        "model": {"depth": 1, "width": 16},
        "recorders": RECORDERS,
        "readout": {"epochs": 0},
        "state_return": {"epochs": 0},
    }
    return tiny(epochs=epochs, schedule={"kind": kind, **own}, **{**small, **changes})


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    return rp.fit(of("shuffled"), tmp_path_factory.mktemp("control") / "shuffled")


def test_none_is_forgotten() -> None:
    assert set(ALL) == set(plugins.ours("schedules"))


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in ("cyclic", "shuffled")])
def test_a_run_of_each(kind: str, control: rp.Run, tmp_path: Path) -> None:
    """Each analysis has numbers, or says by name what it lacks."""
    _, count, epochs = ALL[kind]
    run = rp.fit(of(kind), tmp_path / "run")
    labels = np.repeat([1, 2, 3], epochs).tolist()
    within = [place for length in epochs for place in range(length)]
    assert run.losses.epoch.values.tolist() == [0, *labels]
    assert run.losses.within.values.tolist() == [-1, *within]
    assert run.train_loss.epoch.values.tolist() == list(np.repeat(labels, M))
    assert run.record.epoch.values.tolist() == labels
    assert run.checkpoints == np.cumsum([0, *epochs]).tolist()
    assert f"{kind}" in run.summary()["schedule"]
    # Of other documents than the control's: beside none.
    beside = [control] if count == 5 else []
    for name in plugins.ours("analyses"):
        analysis = plugins.find("analyses", name)()
        if name in ("toy_model", "twin_distance"):
            continue
        if hasattr(analysis, "from_checkpoint"):
            if kind not in (*UNEVEN, *AGAIN):
                continue
            few = {"documents": 1, "orders": 4} if name == "transplant" else {}
            analysis = type(analysis)(from_checkpoint=True, **few)
        if kind in UNEVEN and name in LACKING:
            with pytest.raises(rp.Missing, match=LACKING[name]):
                analysis(run, *beside)
            continue
        found = analysis(run, *beside)
        assert "nan" not in analysis.verdict(found).split(), name
        numbers = [found[n].values for n in [*estimate.names(found), "focal"] if n in found]
        assert any(np.isfinite(values).any() for values in numbers), name


def test_ages_of_documents_that_come_back_among_others_that_do_not(tmp_path: Path) -> None:
    """Of 10 documents 4 come every 6 episodes: their losses, by walking, at the ages 1 to 6."""
    run = rp.fit(of("fresh", recorders=["token_losses"]), tmp_path / "run")
    dataset = plugins.find("analyses", "age_curve")()(run)
    assert dataset.sizes["age"] == 6
    assert dataset.counted.values.tolist() == [[4, 4]]
    assert dataset.waits.values.tolist() == [6, 6]
    losses = run.losses.values
    for epoch in (0, 1):
        mean = [
            np.mean([losses[6 * epoch + place + age, place] for place in range(4)])
            for age in range(1, 7)
        ]
        np.testing.assert_allclose(dataset.loss.values[0, epoch], mean)
    assert "its turn comes after 6, and" in picture.reading(dataset)
    curves = plugins.find("analyses", "loss_curves")()(run)
    assert curves.attrs["focal"] == 2, "of those that come back"
    assert curves.begins.values.tolist() == [0, 6, 12, 18]
    scores, reasons = stats.recovery_per_document(losses[:, :10], run.schedule.values)
    found = plugins.find("analyses", "recovery")()(run)
    np.testing.assert_array_equal(found.document_score.values[0], scores)
    assert (reasons[:, 4:] == stats.NO_TURN).all()
    summary = analyze(run, analyses=["age_curve"], out=tmp_path / "out")
    assert "least_squares" not in summary or not summary["least_squares"], "that is a cycle"
    assert "No picture" not in (tmp_path / "out" / "report.html").read_text()


def test_a_wait_that_is_no_cycles_is_not_called_one(control: rp.Run, tmp_path: Path) -> None:
    run = rp.fit(of("palindrome", recorders=[]), tmp_path / "run")
    age_curve = plugins.find("analyses", "age_curve")()
    dataset = age_curve(run, control)
    # 0 1 2 3 4 | 4 3 2 1 0 | 0 1 2 3 4: waits of 9, 7, 5 and, the other way, 5, 7, 9.
    assert dataset.waits.values.tolist() == [5, 9]
    assert dataset.counted.values[0].tolist() == [3, 3]
    said = age_curve.verdict(dataset)
    assert "within 5 episodes, before turns that come after 5 to 9 (" in said
    assert "On arrival" not in said
    assert "its turn comes after 5 to 9, and" in picture.reading(dataset)


@pytest.mark.parametrize("kind", ["gap", "omit"])
def test_epochs_of_different_lengths(kind: str, tmp_path: Path) -> None:
    """What is due by the epoch comes when one begins; updates add up; and more epochs go on as if
    they had been asked for from the start."""
    every = {name: {"every": "epoch"} for name in ("gradients", "token_losses")}
    own: dict[str, Any] = {
        **every,
        "weight_deltas": {"every": "2 epochs"},
        "recorders": [*every, "weight_deltas", "checkpoints"],
        "optimizer": {"name": "adam", "lr": 0.003, "reset": "epoch"},
    }
    run = rp.fit(of(kind, **own), tmp_path / "run")
    begins = np.cumsum([0, *ALL[kind][2]])
    assert run.token_losses.episodes_done.values.tolist() == begins.tolist()
    assert run.gradients.step.values.tolist() == (begins[:-1] * M).tolist()
    assert run.weight_deltas.step.values.tolist() == (begins[[0, 2]] * M).tolist()
    whole = rp.fit(of(kind, E + 1, **own), tmp_path / "whole")
    # What stands at a time is of that time.
    dense = {"gradients": {"every": "step"}, "weight_deltas": {"every": "episode"}}
    all_of_it = rp.fit(of(kind, E + 1, **{**own, **dense}), tmp_path / "dense")
    at = all_of_it.gradients.sel(step=whole.gradients.step)
    assert np.array_equal(at.sketched, whole.gradients.sketched)
    trajectory = run.weight_trajectory()
    then = all_of_it.weight_trajectory().sel(episodes_done=trajectory.episodes_done)
    np.testing.assert_allclose(trajectory, then, atol=1e-5)
    assert trajectory.episodes_done.values.tolist() == begins[[0, 2, 3]].tolist()
    longer = rp.fit(of(kind, E + 1, **own), run.path, resume=True)
    assert np.array_equal(longer.losses, whole.losses)
    for name in ("gradients", "token_losses", "weight_deltas"):
        assert longer.recorder(name).load().equals(whole.recorder(name).load()), name
    assert longer.replay(record=["residual_stream"]).residual_stream.epoch.values.max() == E + 1


def test_which_go_on_with_more_epochs() -> None:
    """Those whose order begins as it did; where documents come once, more epochs need more, and
    a list ends."""
    for kind, (_, count, _) in ALL.items():
        settings = of(kind, E + 1)
        if kind == "fresh":
            with pytest.raises(rp.InputError, match=f"documents.count = {count}: .* are 12"):
                planned(settings)
            continue
        if kind == "listed":
            with pytest.raises(rp.InputError, match="lists 15 episodes, 3 epochs of 5"):
                planned(settings)
            continue
        before, now = planned(of(kind)), planned(settings)
        assert now.schedule[: before.episodes].tolist() == before.schedule.tolist(), kind
        assert now.boundaries[: len(before.boundaries)].tolist() == before.boundaries.tolist(), kind


def test_epochs_by_walking() -> None:
    """Known lengths first, then those of `per_epoch`, as far as the schedule goes."""
    for lengths, per_epoch, episodes in (
        ((), 5, 15),
        ((), 5, 17),
        ((), 5, 3),
        ((4, 6), 5, 20),
        ((4, 6), 5, 8),
        ((7,), 2, 7),
    ):
        timeline = Timeline(np.zeros(episodes, np.int32), 5, M, per_epoch, lengths)
        places, epoch, left = [], 0, [*lengths]
        while len(places) < episodes:
            length = left.pop(0) if left else per_epoch
            places += [(epoch, place) for place in range(length)]
            epoch += 1
        whole, places = len(places) == episodes, places[:episodes]
        found = list(zip(*(a.tolist() for a in timeline.place(np.arange(episodes))), strict=True))
        assert found == places
        starts = [e for e, (_, place) in enumerate(places) if place == 0]
        assert timeline.due("epoch", "step").tolist() == [e * M for e in starts]
        assert timeline.due("2 epochs", "step").tolist() == [e * M for e in starts[::2]]
        ends = [*starts, *[episodes] * whole]
        assert timeline.due("epoch", "episodes_done").tolist() == ends
        assert [e for e in range(episodes + 1) if timeline.begins_epoch(e)] == ends
        assert timeline.due("3 episodes", "step").tolist() == [*range(0, episodes * M, 3 * M)]
        assert timeline.due("3 steps", "step").tolist() == [*range(0, episodes * M, 3)]


def test_a_guard_looks_at_what_an_epoch_trains_on() -> None:
    """Documents that are not, as those that came once or are yet to come, may fare as they like."""
    timeline = planned(of("fresh"))
    rows = np.full((timeline.episodes + 1, 12), 14.0)  # of what comes once, always
    rows[0] = 6
    rows[1:, :4] = 1
    for done in range(1, 13):
        check_below_untrained(done, rows, timeline)
    rows[13:, :4] = 7
    check_below_untrained(17, rows, timeline)
    with pytest.raises(Diverged, match=r"episode 17: .*above its untrained 6.000"):
        check_below_untrained(18, rows, timeline)


def test_a_control_that_cannot_be_is_known_before_the_run_is_trained(tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=r"schedule.size = 9: a block of more than the 5"):
        rp.fit(of("cyclic"), tmp_path / "runs", control="block:size=9")
    assert not (tmp_path / "runs").exists()


MINE = """
from recovery_probe import Schedule

class Odd(Schedule):
    name = "odd"

    def order(self, documents, epochs, rng):
        return [0, 1, 2]

    def per_epoch(self, documents, epochs):
        return 0
"""


def test_an_epoch_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(rp.InputError, match="schedule odd: epochs of 0 episodes"):
        planned(tiny(schedule={"kind": f"{tmp_path / 'mine.py'}:Odd"}))
