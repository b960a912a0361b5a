"""How recorders take part in training: their moments, their rows, what is refused and said."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import start, wait_for
from conftest import tiny

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.documents import Documents
from recovery_probe.interventions.acting import Interventions
from recovery_probe.record.layout import Timeline
from recovery_probe.recorders import EPISODE, STEP, Array, Episode, Hook, Layout, Recorder
from recovery_probe.recorders.recording import Recording, find
from recovery_probe.testing import check_recorder

DEFAULT = rp.preset("quickstart").recorders


def test_a_recorder_that_was_off_is_told_with_the_mend(tmp_path: Path) -> None:
    run = rp.fit(tiny(recorders=["gradients"], epochs=1), tmp_path / "run")
    with pytest.raises(rp.InputError, match=r"residual_stream was off.*--record residual_stream"):
        run.residual_stream  # noqa: B018
    with pytest.raises(AttributeError):
        run.nonsense  # noqa: B018


def test_cost_and_sketch_error_are_in_the_provenance(pair: rp.Run) -> None:
    cost = pair.provenance["recorders"]
    assert set(cost) == set(pair.config.recorders) >= set(DEFAULT)
    assert all(0 <= c["share"] < 1 for c in cost.values())
    error = cost["gradients"]["sketch_error"]
    assert error["compared"] > 20
    assert 0 < error["rms"] < 2 * error["expected_at_most"]


def test_what_will_be_written_is_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rp.fit(tiny(epochs=1, recorders=DEFAULT), tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("record ")]
    assert [line.split()[1].rstrip(":") for line in lines] == list(DEFAULT)
    assert said.index(lines[-1]) < next(i for i, t in enumerate(said) if "epoch 1" in t)
    assert any("sketched 15×19×127" in line for line in lines)


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(rp.InputError, match=r"the disk has 0\.0 MB: record less .* or add --force"):
        rp.fit(tiny(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    rp.fit(tiny(epochs=1), tmp_path / "run", force=True)


def test_the_default_record_of_a_billion_parameters_is_under_500_mb(tmp_path: Path) -> None:
    """Pythia-1B's shape, 1250 steps, counted and not trained: widths do not enter a sketch."""
    settings = rp.preset("paper", recorders=["residual_stream", "gradients", "weight_deltas"])
    small = rp.Training.open(tiny(model={"depth": 16}))
    small.model.bridge.cfg.d_model = 2048
    tokens = np.zeros((30, 256), dtype=np.int64)
    inputs = {"tokens": tokens, "mask": np.ones_like(tokens, dtype=bool)}
    big = replace(
        small,
        settings=settings,
        documents=Documents(inputs, names=("",) * 30, texts=("",) * 30, trained=25, left_out={}),
        timeline=Timeline(np.zeros(125, dtype=np.int32), documents=25, steps=10, per_epoch=25),
    )
    sizes = Recording(find(settings), big, Interventions([], big)).sizes()
    total = sum(size for arrays in sizes.values() for _, size in arrays.values())
    assert sizes["gradients"]["sketched"][0] == (1250, 131, 127)
    assert 300e6 < total < 500e6


def test_a_recorder_class_with_every_moment(tmp_path: Path) -> None:
    order: list[str] = []

    class Mine(Recorder):
        name = "mine"

        def start(self, training: rp.Training) -> Layout:
            order.append("start")
            arrays = {"twice": Array(EPISODE, (), (), "twice the episodes done", "episodes")}
            return Layout(arrays, every={STEP: "step"})

        def before_step(self, step: Any) -> None:
            order.append("before_step")

        def after_backward(self, step: Any) -> None:
            order.append("after_backward")

        def after_step(self, step: Any) -> None:
            order.append("after_step")

        def after_episode(self, episode: Episode) -> dict[str, int]:
            order.append("after_episode")
            return {"twice": 2 * episode.done}

        def finish(self) -> dict[str, Any]:
            order.append("finish")
            return {"mine": "done"}

    run = rp.fit(tiny(epochs=1, steps=2, recorders=[]), tmp_path / "run", hooks=[Mine])
    episode = ["before_step", "after_backward", "after_step"] * 2 + ["after_episode"]
    assert order == ["start", "after_episode", *episode * 5, "finish"]
    assert run.recorder("mine").twice.values.tolist() == [0, 2, 4, 6, 8, 10]
    assert run.provenance["recorders"]["mine"]["mine"] == "done"


def test_conformance_catches_what_it_should() -> None:
    class Meddles(Recorder):
        name = "meddles"

        def start(self, training: rp.Training) -> Layout:
            return Layout({"a": Array(STEP, (), (), "nothing", "1")})

        def after_backward(self, step: Any) -> dict[str, float]:
            next(iter(step.model.parameters.values())).grad.mul_(2)
            return {"a": 1.0}

    class Forgets(Recorder):
        name = "forgets"

        def start(self, training: rp.Training) -> Layout:
            return Layout({"a": Array(STEP, (), (), "nothing", "1")})

        def after_step(self, step: Any) -> dict[str, float] | None:
            return {"a": 1.0} if step.index % 2 else None

    with pytest.raises(rp.HookError, match="recorder meddles changed the gradients at step 0"):
        check_recorder(Meddles)
    with pytest.raises(AssertionError, match="no value at"):
        check_recorder(Forgets)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": [1.0, 2.0]}, r"'a' at step 0 of shape \(2,\); its layout says of shape \(\)"),
        ({"b": 1.0}, r"gave 'b'.*one of \['a'\]"),
        (None, r"wrong failed at step 0: ZeroDivisionError: .* \(test_recording.py:\d+\)"),
    ],
)
def test_a_wrong_recorder_is_named(rows: Any, said: str, tmp_path: Path) -> None:
    class Wrong(Recorder):
        name = "wrong"

        def start(self, training: rp.Training) -> Layout:
            return Layout({"a": Array(STEP, (), (), "nothing", "1")})

        def after_step(self, step: Any) -> Any:
            return rows or 1 / 0

    with pytest.raises(rp.HookError, match=said):
        rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=[Wrong])
    assert rp.open_run(tmp_path / "run").status == "failed"


@pytest.mark.parametrize("architecture", ["openai-gpt", "deepseek_v4"])
def test_a_recorder_that_cannot_watch_a_network_says_so(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"init": "library", "architecture": architecture, "dropout": 0}
    options |= {"width": 32, "depth": 2, "heads": 2, "vocabulary": 300}
    argv = ["--no-record", "document_gradients", "--out", str(tmp_path / "run")]
    argv += [f"--model.{name}={value}" for name, value in options.items()]
    sizes = {"count": 3, "held_out": 1, "tokens": 24, "min_tokens": 24}
    argv += [f"--documents.{name}={value}" for name, value in sizes.items()]
    with pytest.raises(SystemExit) as stopped:
        main(["train", "quickstart", *argv])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: recorder residual_stream cannot watch this model: hook point")
    assert said.endswith("never fires; leave it out: --no-record residual_stream")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_keeps_whole_episodes_of_every_recorder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    try:
        wait_for(out, 9)
    finally:
        process.kill()
        process.ended()
    run = rp.open_run(out)
    done = run.episodes_done
    assert 9 <= done < 2000
    assert np.isfinite(run.losses.values[: done + 1]).all()
    assert np.isnan(run.losses.values[done + 1 :]).all()
    assert np.isfinite(run.train_loss.values[: 2 * done]).all()
    assert np.isnan(run.train_loss.values[2 * done :]).all()
    for name in run.recorders:
        dataset = run.recorder(name).load()
        for array in dataset.data_vars.values():
            expected = {STEP: 2 * done, EPISODE: done + 1}[str(array.dims[0])]
            if name == "document_gradients":  # every epoch
                expected = done // 4 + 1
            assert len(array) == expected
            assert np.isfinite(array.values.reshape(expected, -1)).any(axis=1).all()
    assert run.weight_trajectory().sizes[EPISODE] == done + 1


class Sparse(Recorder):
    """Returns at steps 2, 5, 8, 11, … alone; int and bool arrays too."""

    name = "sparse"

    def start(self, training: rp.Training) -> Layout:
        arrays = {"x": Array(STEP, (), (), "its own step")}
        arrays["count"] = Array(EPISODE, (), (), "a large number", dtype="int32")
        arrays["even"] = Array(EPISODE, ("two",), (2,), "whether even", dtype="bool")
        return Layout(arrays)

    def after_step(self, step: Any) -> Any:
        return {"x": float(step.index)} if step.index % 3 == 2 else None

    def after_episode(self, episode: Any) -> Any:
        even = episode.done % 2 == 0
        return {"count": 2**24 + 1 + episode.done, "even": torch.tensor([even, not even])}


def test_rows_stand_where_they_were_given(tmp_path: Path) -> None:
    run = rp.fit(tiny(epochs=1, steps=6, recorders=[]), tmp_path / "run", hooks=[Sparse()])
    sparse = run.recorder("sparse").load()
    x = sparse.x.values
    assert np.flatnonzero(np.isfinite(x)).tolist() == list(range(2, 30, 3))
    assert x[2::3].tolist() == list(range(2, 30, 3))
    assert sparse["count"].dtype == np.int32
    assert sparse["count"].values.tolist() == [2**24 + 1 + k for k in range(6)]
    assert sparse.even.values.tolist() == [[k % 2 == 0, k % 2 == 1] for k in range(6)]
    assert run.provenance["recorders"]["sparse"]["rows_missing"] == {"x": 20}


@pytest.mark.parametrize("moment", ["before_step", "after_backward", "after_step", "after_episode"])
def test_a_recorder_that_changes_weights_is_named(moment: str, tmp_path: Path) -> None:
    def change(self: Any, context: Any) -> None:
        with torch.no_grad():
            next(iter(context.model.parameters.values())).data[0, 0] += 1e-3

    body = {"name": "mover", "start": lambda self, training: Layout(), moment: change}
    kind = type("Mover", (Recorder,), body)
    with pytest.raises(rp.HookError, match="recorder mover changed the weights at"):
        rp.fit(tiny(), tmp_path / "run", hooks=[kind])


def test_updates_that_gradients_do_not_tell_stop_the_run(tmp_path: Path) -> None:
    class Freezes(Recorder):
        """Not at an epoch's first step, where it would be seen at once."""

        name = "freezes"

        def start(self, training: rp.Training) -> Layout:
            return Layout()

        def after_backward(self, step: Any) -> None:
            if step.index % 15:
                for name, p in step.model.parameters.items():
                    if "mlp" in name:
                        p.grad.zero_()

    with pytest.raises(rp.HookError, match=r"weight_deltas: in the epoch .*mlp.* moved by about"):
        rp.fit(tiny(recorders=["gradients", "weight_deltas"]), tmp_path / "run", hooks=[Freezes])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "losses"}, "called 'losses' cannot have a group"),
        ({"name": "path"}, "called 'path' cannot have a group"),
        ({"name": "_mine"}, "called '_mine' cannot have a group"),
        ({"layout": Layout({"a/b": Array(STEP, (), (), "x")})}, "'a/b' .*expected names without"),
        ({"layout": Layout({"a": Array(STEP, ("step",), (2,), "x")})}, "a row cannot have"),
        (
            {
                "layout": Layout(
                    {"a": Array(STEP, ("d",), (2,), "x"), "b": Array(STEP, ("d",), (3,), "x")}
                )
            },
            "d has size 3, and 2 in recorder mine: array 'a'",
        ),
        ({"layout": None}, "start gave a NoneType"),
        ({"layout": Layout({"a": Array(STEP, (), (), "x", dtype="str")})}, "dtype 'str'"),
        ({"layout": Layout(hooks=(Hook("blocks.9.hook_out", print),))}, "--no-record mine"),
    ],
)
def test_wrong_layouts_are_refused_before_training(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    layout = changes.get("layout", Layout())
    body = {"name": changes.get("name", "mine"), "start": lambda self, training: layout}
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(), tmp_path / "run", hooks=[type("Mine", (Recorder,), body)])
    assert not (tmp_path / "run").exists()


def test_failures_of_authors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kind(**body: Any) -> type[Recorder]:
        return type("Mine", (Recorder,), {"name": "mine", "start": lambda *_: Layout(), **body})

    def fails(*_: Any) -> Any:
        raise KeyError("gone")

    def exits(self: Any, step: Any) -> None:
        if step.index == 7:
            raise SystemExit(0)

    short = tiny(epochs=1, recorders=[])
    with pytest.raises(rp.InputError, match=r"recorder mine cannot start .*gone"):
        rp.fit(short, tmp_path / "start", hooks=[kind(start=fails)])
    with pytest.raises(rp.HookError, match="recorder mine failed at step 7: SystemExit"):
        rp.fit(short, tmp_path / "exit", hooks=[kind(after_step=exits)])
    assert rp.open_run(tmp_path / "exit").status == "failed"
    run = rp.fit(short, tmp_path / "finish", hooks=[kind(finish=fails)])
    assert run.status == "complete"
    error = run.provenance["recorders"]["mine"]["error"]
    assert re.fullmatch(r"finish failed: KeyError: 'gone' \(test_recording.py:\d+\)", error)
    facts = kind(finish=lambda self: {"status": "x", "n": np.float32(2)})
    run = rp.fit(short, tmp_path / "facts", hooks=[facts])
    assert run.status == "complete"
    assert run.provenance["recorders"]["mine"]["status"] == "x"
    never = kind(start=lambda *_: Layout({"a": Array(STEP, (), (), "x")}))
    with pytest.raises(rp.HookError, match="recorder mine gave no row of 'a'"):
        rp.fit(short, tmp_path / "never", hooks=[never])
    huge = kind(
        start=lambda *_: Layout({"a": Array(STEP, (), (), "x")}),
        after_step=lambda self, step: {"a": 1e300},
    )
    with pytest.raises(rp.HookError, match="values of 'a' that float32 cannot hold"):
        rp.fit(short, tmp_path / "huge", hooks=[huge])


def test_conformance_sees_rows_of_another_time() -> None:
    class Lags(Recorder):
        name = "lags"

        def start(self, training: rp.Training) -> Layout:
            self.last = 0.0
            return Layout({"a": Array(STEP, (), (), "norm of the gradient")})

        def after_backward(self, step: Any) -> dict[str, float]:
            given, p = self.last, next(iter(step.model.parameters.values()))
            self.last = float(p.grad.norm())
            return {"a": given}

    with pytest.raises(AssertionError, match=r"a: .*another time"):
        check_recorder(Lags)
