"""Hooks and recorders that return late, in another order, or change what they are shown."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

import recovery_probe as rp
from recovery_probe.recorders import EPISODE, STEP, Array, Hook, Layout, Recorder, RunInfo
from recovery_probe.testing import check_recorder


def place(name: str) -> int:
    return zlib.crc32(name.encode()) % 2**16


def mean(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return torch.stack([tensor.detach().float().mean(), torch.tensor(float(place(hook.name)))])


class Sparse(Recorder):
    """Returns at steps 2, 5, 8, 11, … alone; int and bool arrays too."""

    name = "sparse"

    def start(self, run: RunInfo) -> Layout:
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
    run = rp.fit(tiny(epochs=1, steps=6), tmp_path / "run", hooks=[Sparse()])
    found = run.recorder("sparse").load()
    x = found.x.values
    assert np.flatnonzero(np.isfinite(x)).tolist() == list(range(2, 30, 3))
    assert x[2::3].tolist() == list(range(2, 30, 3))
    assert found["count"].dtype == np.int32
    assert found["count"].values.tolist() == [2**24 + 1 + k for k in range(6)]
    assert found.even.values.tolist() == [[k % 2 == 0, k % 2 == 1] for k in range(6)]
    assert run.provenance["recorders"]["sparse"]["rows_missing"] == {"x": 20}


PATTERNS = [
    "blocks.*.mlp.*",
    "blocks.0.*",
    "*",
    "ln_final.*",
    "blocks.*.attn.*",
    "blocks.0.attn.hook_*",
    "blocks.*.hook_out",
]


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_every_point_that_fires_is_there(architecture: str, tmp_path: Path) -> None:
    settings = tiny(epochs=1, steps=1, recorders=[], model={"architecture": architecture})
    hooks = [(f"hook_{i}", pattern, mean) for i, pattern in enumerate(PATTERNS)]
    run = rp.fit(settings, tmp_path / "run", hooks=hooks)
    for name, pattern, _ in hooks:
        value = run.recorder(name).value
        assert not np.isnan(value.values).any(), pattern
        assert (value.values[..., 1] == [place(str(p)) for p in value.hook_point.values]).all()


def test_points_that_never_fire_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {"architecture": "openai-gpt", "dropout": 0.0}
    settings = tiny(epochs=1, steps=1, recorders=[], model=network)
    points = [f"blocks.0.hook_{name}" for name in ("in", "resid_pre", "resid_post")]
    run = rp.fit(settings, tmp_path / "run", hooks=[("seen", points, mean)])
    (said,) = (t for t in capsys.readouterr().err.splitlines() if "left out" in t)
    silent = said.rpartition(": ")[2].split(", ")
    value = run.recorder("seen").value
    assert silent
    assert value.hook_point.values.tolist() == [p for p in points if p not in silent]
    assert f"hook seen: {len(silent)} of 3 hook points never fire" in said
    assert np.isfinite(value.values).all()
    with pytest.raises(rp.InputError, match=r"such as .*, of which none ever fires"):
        rp.fit(settings, tmp_path / "none", hooks=[("none", silent, mean)])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("how", ["plain", "data"])
def test_changes_in_place_are_refused(how: str, tmp_path: Path) -> None:
    def louder(tensor: torch.Tensor, *, hook: Any) -> float:
        (tensor.data if how == "data" else tensor).mul_(1.5)
        return 1.0

    with pytest.raises(rp.HookError, match=r"louder changed the activation in place .*hook_out"):
        rp.fit(tiny(), tmp_path / "run", hooks=[("blocks.0.hook_out", louder)])

    class Louder(Recorder):
        name = "louder"

        def start(self, run: RunInfo) -> Layout:
            return Layout(hooks=(Hook("blocks.0.hook_out", self.see),))

        def see(self, tensor: torch.Tensor, *, hook: Any, moment: Any) -> None:
            louder(tensor.detach(), hook=hook)

    with pytest.raises(rp.HookError, match="recorder louder changed the activation"):
        rp.fit(tiny(), tmp_path / "other", hooks=[Louder])


@pytest.mark.parametrize("moment", ["before_step", "after_backward", "after_step", "after_episode"])
def test_a_recorder_that_changes_weights_is_named(moment: str, tmp_path: Path) -> None:
    def change(self: Any, context: Any) -> None:
        with torch.no_grad():
            next(iter(context.model.parameters.values())).data[0, 0] += 1e-3

    body = {"name": "mover", "start": lambda self, run: Layout(), moment: change}
    kind = type("Mover", (Recorder,), body)
    with pytest.raises(rp.HookError, match="recorder mover changed the weights at"):
        rp.fit(tiny(), tmp_path / "run", hooks=[kind])


def test_updates_that_gradients_do_not_tell_stop_the_run(tmp_path: Path) -> None:
    class Freezes(Recorder):
        """Not at an epoch's first step, where it would be seen at once."""

        name = "freezes"

        def start(self, run: RunInfo) -> Layout:
            return Layout()

        def after_backward(self, step: Any) -> None:
            if step.index % 15:
                for name, p in step.model.parameters.items():
                    if "mlp" in name:
                        p.grad.zero_()

    with pytest.raises(rp.HookError, match=r"weight_deltas: in the epoch .*mlp.* moved by about"):
        rp.fit(tiny(recorders=["gradients", "weight_deltas"]), tmp_path / "run", hooks=[Freezes])


def test_bfloat16_weights_that_do_not_move_are_said_not_to(tmp_path: Path) -> None:
    settings = tiny(
        epochs=1,
        recorders=["weight_deltas", "checkpoints"],
        model={"dtype": "bfloat16"},
        optimizer={"lr": 1e-7},
    )
    run = rp.fit(settings, tmp_path / "run")
    deltas = run.weight_deltas.load()
    start, end = (run.model_at(k).parameters for k in (0, 5))
    total = sum(float((end[n].float() - start[n].float()).norm() ** 2) for n in start)
    one = float((deltas.norm**2).sum())
    assert one <= 1.5 * total + 1e-12
    assert (deltas.norm.sel(kind="ln1") == 0).all()
    assert deltas.norm.attrs["covers"] == "stretch"


def test_hooks_ask_for_step_and_document(tmp_path: Path) -> None:
    def asks(tensor: torch.Tensor, *, hook: Any, scale: float, step: Any, document: int) -> Any:
        return [document, -1 if step is None else step, tensor.shape[0], tensor.detach().mean()]

    hook = ("who", ["blocks.1.hook_out"], functools.partial(asks, scale=1.0))
    from recovery_probe.recorders.hook import HookRecorder

    recorder = HookRecorder(hook[1], hook[2], name="who", during="both")
    run = rp.fit(tiny(epochs=1, eval_batch=3), tmp_path / "run", hooks=[recorder])
    found = run.recorder("who").load()
    assert found.value[:, 0, 0].values.tolist() == np.repeat(run.schedule.values, 3).tolist()
    assert found.value[:, 0, 1].values.tolist() == list(range(15))
    assert found.evaluated.dims[:3] == (EPISODE, "hook_point", "document")
    assert (found.evaluated[:, 0, :, 0].values == np.arange(7)).all()
    assert (found.evaluated[:, 0, :, 1:3].values == [-1, 1]).all()
    # Right before a first step, training and evaluation see the same activations.
    trained = found.value[::3, 0, 3].values
    before = [found.evaluated.values[e, 0, d, 3] for e, d in enumerate(run.schedule.values)]
    np.testing.assert_allclose(trained, before, atol=1e-5)


@pytest.mark.parametrize("value", ["1.5", b"x", {}, 1j, np.datetime64(1, "s"), [[1], [1, 2]]])
def test_what_is_no_number_is_refused_in_the_trial(value: Any, tmp_path: Path) -> None:
    def odd(tensor: torch.Tensor, *, hook: Any) -> Any:
        return value

    with pytest.raises(rp.HookError, match=r"hook odd returned a .* the trial before training"):
        rp.fit(tiny(), tmp_path / "run", hooks=[("blocks.0.hook_out", odd)])
    assert not (tmp_path / "run").exists()


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
    body = {"name": changes.get("name", "mine"), "start": lambda self, run: layout}
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

    with pytest.raises(rp.InputError, match=r"recorder mine cannot start .*gone"):
        rp.fit(tiny(), tmp_path / "start", hooks=[kind(start=fails)])
    with pytest.raises(rp.HookError, match="recorder mine failed at step 7: SystemExit"):
        rp.fit(tiny(), tmp_path / "exit", hooks=[kind(after_step=exits)])
    assert rp.open_run(tmp_path / "exit").status == "failed"
    run = rp.fit(tiny(epochs=1), tmp_path / "finish", hooks=[kind(finish=fails)])
    assert run.status == "complete"
    assert run.provenance["recorders"]["mine"]["error"] == "finish failed: KeyError: 'gone'"
    facts = kind(finish=lambda self: {"status": "x", "n": np.float32(2)})
    run = rp.fit(tiny(epochs=1), tmp_path / "facts", hooks=[facts])
    assert run.status == "complete"
    assert run.provenance["recorders"]["mine"]["status"] == "x"
    never = kind(start=lambda *_: Layout({"a": Array(STEP, (), (), "x")}))
    with pytest.raises(rp.HookError, match="recorder mine gave no row of 'a'"):
        rp.fit(tiny(epochs=1), tmp_path / "never", hooks=[never])
    huge = kind(
        start=lambda *_: Layout({"a": Array(STEP, (), (), "x")}),
        after_step=lambda self, step: {"a": 1e300},
    )
    with pytest.raises(rp.HookError, match="values of 'a' that float32 cannot hold"):
        rp.fit(tiny(epochs=1), tmp_path / "huge", hooks=[huge])


def test_the_last_weights_are_kept(tmp_path: Path) -> None:
    settings = tiny(recorders=["checkpoints"], checkpoints={"every": "7 episodes"})
    rp.fit(settings, tmp_path / "run")
    kept = sorted(int(f.name[-5:]) for f in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [0, 7, 14, 15]


def test_conformance_sees_rows_of_another_time() -> None:
    class Lags(Recorder):
        name = "lags"

        def start(self, run: RunInfo) -> Layout:
            self.last = 0.0
            return Layout({"a": Array(STEP, (), (), "norm of the gradient")})

        def after_backward(self, step: Any) -> dict[str, float]:
            given, p = self.last, next(iter(step.model.parameters.values()))
            self.last = float(p.grad.norm())
            return {"a": given}

    with pytest.raises(AssertionError, match=r"a: .*another time"):
        check_recorder(Lags)


def test_nothing_at_a_point_is_nan_and_not_an_old_value(tmp_path: Path) -> None:
    def sometimes(tensor: torch.Tensor, *, hook: Any, step: int) -> float | None:
        return None if step % 2 and hook.name.startswith("blocks.0") else float(step)

    hooks = [("blocks.*.hook_out", sometimes)]
    value = rp.fit(tiny(epochs=1), tmp_path / "run", hooks=hooks).recorder("sometimes").value
    points = value.hook_point.values.astype(object)
    first, second = (value[:, points == f"blocks.{i}.hook_out"] for i in (0, 1))
    steps = np.arange(15.0)
    assert second.values[:, 0].tolist() == steps.tolist()
    np.testing.assert_array_equal(first.values[:, 0], np.where(steps % 2, np.nan, steps))
