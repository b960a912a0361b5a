"""A plan of runs, and schedules of any length in which documents come as often as they like."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recovery_probe as rp
from recovery_probe.record.run import open_runs
from recovery_probe.testing import toy_settings as tiny

MINE = """
from dataclasses import dataclass
import numpy as np
from recovery_probe import Schedule

@dataclass
class Given(Schedule):
    name = "given"
    # the document of each episode
    documents: tuple[int, ...] = ()

    def order(self, documents, epochs, rng):
        return np.array(self.documents)

@dataclass
class Raw(Given):
    def order(self, documents, epochs, rng):
        return {"float": [0.0, 1.0], "empty": [], "square": [[0, 1], [2, 3]], "words": ["a", "b"],
                "ragged": [[0], [1, 2]], "nothing": None, "bool": [True, False]}[self.what]
    what: str = "float"

class Fails(Given):
    def order(self, documents, epochs, rng):
        raise RuntimeError("no order today")

class Leaves(Given):
    def order(self, documents, epochs, rng):
        raise SystemExit(0)

class Tells(Given):
    def order(self, documents, epochs, rng):
        print("ASKED", documents, epochs, rng.integers(2**60))
        return np.arange(documents)
"""
SMALL: dict[str, Any] = {"recorders": ["token_losses", "gradients", "weight_deltas"]}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def given(file: Path, order: list[int], **changes: Any) -> rp.Settings:
    return tiny(schedule={"kind": f"{file}:Given", "documents": order}, **{**SMALL, **changes})


ORDERS = {
    "uneven": [0, 0, 0, 1, 4, 1, 0, 3, 3, 1, 2, 0, 4, 4, 0],
    "some never": [3, 1, 3, 1, 3, 1],
    "shorter than an epoch": [4, 2, 0],
    "one": [2],
    "longer": [0, 1, 2, 3, 4] * 3 + [4, 3],
}


@pytest.mark.parametrize("name", ORDERS)
def test_any_order_is_trained_recorded_and_opened(name: str, mine: Path, tmp_path: Path) -> None:
    order, M, T = ORDERS[name], 3, 5
    run = rp.open_run(rp.fit(given(mine, order), tmp_path / "run").path)
    run.check()
    assert run.status == "complete"
    assert run.episodes_done == len(order)
    assert run.schedule.values.tolist() == order
    assert np.isfinite(run.losses).all()
    assert run.losses.sizes["episodes_done"] == len(order) + 1
    assert run.train_loss.sizes["step"] == len(order) * M
    assert run.losses.trained_on.values.tolist() == [-1, *order]
    assert run.train_loss.document.values.tolist() == list(np.repeat(order, M))
    assert run.losses.epoch.values.tolist() == [0, *(i // T + 1 for i in range(len(order)))]
    assert run.gradients.document.values.tolist() == list(np.repeat(order, M))
    # Where training was is where the loss fell: the loss at an episode's first step is that of its
    # document in the row before.
    first = run.train_loss.values[::M]
    np.testing.assert_allclose(first, run.losses.values[range(len(order)), order], atol=1e-5)
    # Updates add up, wherever they are counted from.
    assert run.weight_trajectory().episodes_done.values.tolist() == list(range(len(order) + 1))
    assert f"{len(order)} of {len(order)} episodes" in repr(run)
    assert not [f for f in run.provenance["recorders"].values() if "rows_missing" in f]


def test_an_order_is_of_its_own_run_alone(mine: Path, tmp_path: Path) -> None:
    """As far as two orders are the same, so is what comes of them."""
    one = rp.fit(given(mine, ORDERS["longer"][:7]), tmp_path / "one")
    two = rp.fit(given(mine, ORDERS["longer"]), tmp_path / "two")
    assert np.array_equal(one.losses, two.losses[:8])
    assert np.array_equal(one.gradients.sketched, two.gradients.sketched[:21])


def test_times_of_an_order_that_ends_within_an_epoch(mine: Path, tmp_path: Path) -> None:
    """What is due by the epoch is due at its start, and a stretch ends with the run."""
    often = {n: {"every": "epoch"} for n in SMALL["recorders"]}
    settings = given(mine, ORDERS["longer"], **often, recorders=[*often, "checkpoints"])
    run = rp.fit(settings, tmp_path / "run")
    assert run.token_losses.episodes_done.values.tolist() == [0, 5, 10, 15]
    assert run.gradients.step.values.tolist() == [0, 15, 30, 45]
    assert run.weight_deltas.step.values.tolist() == [0, 15, 30, 45]
    assert run.weight_trajectory().episodes_done.values.tolist() == [0, 5, 10, 15, 17]
    assert run.checkpoints == [0, 5, 10, 15, 17]
    moved = run.weight_trajectory()[-1]
    every = rp.fit(given(mine, ORDERS["longer"]), tmp_path / "every").weight_trajectory()[-1]
    np.testing.assert_allclose(moved, every, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        (
            "Given",
            {"documents": [0, 1, 5]},
            "given: documents 0 to 5, and there are 0 to 4",
        ),
        ("Given", {"documents": [0, -1]}, "documents -1 to 0, and there are 0 to 4"),
        ("Given", {}, "one document for each episode"),
        ("Raw", {"what": "float"}, "whole numbers; got float64 of shape"),
        ("Raw", {"what": "empty"}, "one document for each episode"),
        ("Raw", {"what": "square"}, r"of shape \(2, 2\)"),
        ("Raw", {"what": "words"}, "whole numbers"),
        ("Raw", {"what": "ragged"}, "schedule given failed: ValueError"),
        ("Raw", {"what": "nothing"}, "one document for each episode"),
        ("Raw", {"what": "bool"}, "whole numbers; got bool"),
        ("Raw", {"what": "else"}, "schedule given failed: KeyError"),
        ("Fails", {}, "schedule given failed: RuntimeError: no order today"),
        ("Leaves", {}, "schedule given failed: SystemExit: 0"),
    ],
)
def test_what_is_no_order_is_refused_before_anything_is_written(
    kind: str, own: dict[str, Any], said: str, mine: Path, tmp_path: Path
) -> None:
    settings = tiny(schedule={"kind": f"{mine}:{kind}", **own})
    with pytest.raises(rp.InputError, match=said):
        rp.fit(settings, tmp_path / "run")
    assert os.listdir(tmp_path) == ["mine.py"]


def test_a_schedule_draws_from_a_stream_of_its_own(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, epochs in ((0, 2), (0, 3), (1, 2)):
        rp.Training.open(tiny(seed=seed, epochs=epochs, schedule={"kind": f"{mine}:Tells"}))
    said = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if "ASKED" in line]
    assert [words[:2] for words in said] == [["5", "2"], ["5", "3"], ["5", "2"]]
    assert said[0][2] == said[1][2] != said[2][2]


def test_a_plan_of_runs_and_their_controls(mine: Path, tmp_path: Path) -> None:
    base = tiny(recorders=[], epochs=1)
    shuffled = rp.changed(base, **{"schedule.kind": "shuffled"})
    back = rp.changed(base, schedule={"kind": f"{mine}:Given", "documents": [4, 3, 2, 1, 0]})
    other = rp.changed(base, **{"seed": 1})
    place, slow = tmp_path / "all", {"optimizer.lr": 0.01}
    run = rp.fit(
        [
            rp.Point(place / "a", base),
            rp.Point(place / "a-shuffled", shuffled, role="control"),
            rp.Point(place / "deep" / "a-back", back, role="control"),
            rp.Point(place / "b", other),
            rp.Point(place / "c", rp.changed(base, **slow)),
            rp.Point(
                place / "c-shuffled", rp.changed(shuffled, **{"optimizer.lr": 0.01}), "control"
            ),
        ]
    )
    assert run.path == place / "a"
    assert [c.path.name for c in run.controls] == ["a-shuffled", "a-back"]
    assert rp.open_run(place / "b").controls == []
    assert [c.path.name for c in rp.open_run(place / "c").controls] == ["c-shuffled"]
    roles = {f.name: rp.open_run(f).provenance["role"] for f in place.iterdir() if f.name != "deep"}
    assert roles == {n: "control" if "-" in n else "run" for n in roles}
    assert all(control.controls == [] for control in run.controls)
    # Together they may be moved; and one that is gone is no control any more.
    shutil.move(place, tmp_path / "moved")
    moved = rp.open_run(tmp_path / "moved" / "a")
    assert [c.path.name for c in moved.controls] == ["a-shuffled", "a-back"]
    assert moved.controls[1].schedule.values.tolist() == [4, 3, 2, 1, 0]
    shutil.rmtree(tmp_path / "moved" / "a-shuffled")
    assert [c.path.name for c in moved.controls] == ["a-back"]


def test_a_control_by_name_is_a_plan(pair: rp.Run, tmp_path: Path) -> None:
    shuffled = rp.changed(pair.config, **{"schedule.kind": "shuffled"})
    run = rp.fit(
        [rp.Point(tmp_path / "x", pair.config), rp.Point(tmp_path / "y", shuffled, "control")]
    )
    assert np.array_equal(run.losses, pair.losses)
    assert np.array_equal(run.controls[0].losses, pair.controls[0].losses)
    assert run.controls[0].config == pair.controls[0].config


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "a plan of no runs"),
        ([("x", {}), ("x", {"seed": 1})], "x: two runs of the plan in one place"),
        ([("x", {}, "control")], "x: a control, and no run before it"),
        ([("x", {}), ("y", {}, "controll")], "y: role = 'controll': expected run, control, twin"),
        ([("x", {}), ("y", {}, "control")], "y: not a control of .*x: its schedule is the same"),
        ([("x", {}), ("y", {"seed": 1}, "twin")], r"y: not a twin of .*x: they differ in seed\.d"),
        ([("y", {}, "twin")], "y: a twin, and no run before it"),
        (
            [("x", {}), ("y", {"schedule": {"kind": "shuffled"}, "seed": 1}, "control")],
            "y: not a control of .*x: beside the schedule they differ in seed",
        ),
        ([("x", {"epochs": 10**9})], "more than 1e.08"),
    ],
)
def test_wrong_plans_are_refused_before_any_training(
    points: list[Any], said: str, tmp_path: Path
) -> None:
    plan = [
        rp.Point(tmp_path / name, tiny() if "epochs" in changes else tiny(**changes), *role)
        for name, changes, *role in points
    ]
    for point, (_, changes, *_) in zip(plan, points, strict=True):
        if "epochs" in changes:  # by hand, unchecked
            object.__setattr__(point.settings, "epochs", changes["epochs"])
    with pytest.raises(rp.InputError, match=said):
        rp.fit(plan)
    assert not os.listdir(tmp_path)


def test_a_plan_says_itself_where_it_goes(tmp_path: Path) -> None:
    plan = [rp.Point(tmp_path / "x", tiny())]
    for more in ({"out": tmp_path / "y"}, {"control": "shuffled"}):
        with pytest.raises(rp.InputError, match="a plan says itself where its runs go"):
            rp.fit(plan, **more)
    with pytest.raises(rp.InputError, match="fit needs the directory to write, out"):
        rp.fit(tiny())
    assert not os.listdir(tmp_path)


def test_a_twin_starts_one_last_digit_away(tmp_path: Path) -> None:
    settings = tiny(epochs=2, recorders=["checkpoints"])
    run = rp.fit(settings, tmp_path / "x", control=["shuffled:keep_first=true", "twin"])
    (twin,), (control,) = run.twins, run.controls
    assert [p.name for p in sorted((tmp_path / "x").iterdir())] == [
        "cyclic",
        "shuffled-keep_first-true",
        "twin",
    ]
    assert control.config.schedule.own == {"keep_first": True}
    assert run.declared
    assert twin.config == run.config
    assert twin.provenance["role"] == "twin"
    for name, weight in run.weights_at(0).items():
        other = twin.weights_at(0)[name]
        assert (weight != other).all(), name
        assert (np.nextafter(weight, other) == other).all(), name
    apart = np.abs(twin.losses.values - run.losses.values).max(axis=1)
    assert 0 < apart[-1] < 1e-2
    assert [r.path.name for r in open_runs(tmp_path / "x")] == ["cyclic", control.path.name]


@pytest.mark.parametrize("control", ["shuffled:keep_first=maybe", "shuffled:keep=true", "cyclic"])
def test_controls_that_cannot_be_are_refused(control: str, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=r"control|keep"):
        rp.fit(tiny(), tmp_path / "x", control=control)
    assert not (tmp_path / "x").exists()
