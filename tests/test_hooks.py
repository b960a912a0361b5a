"""A user's hook functions, recorded: which points, what they return, when they change something."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALL, tiny

import recovery_probe as rp
from recovery_probe.cli import main
from recovery_probe.config import to_toml
from recovery_probe.recorders import EPISODE, STEP, Hook, Layout, Recorder
from recovery_probe.recorders.hook import HookRecorder


def place(name: str) -> int:
    return zlib.crc32(name.encode()) % 2**16


def mean(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return torch.stack([tensor.detach().float().mean(), torch.tensor(float(place(hook.name)))])


def halved(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return tensor * 0.5


def test_a_hook_function_is_recorded(tmp_path: Path) -> None:
    def two(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return torch.stack([tensor.mean(), tensor.std()])

    run = rp.fit(tiny(recorders=ALL), tmp_path / "run", hooks=[("blocks.*.hook_resid_post", two)])
    value = run.recorder("two").value
    assert value.dims == (STEP, "hook_point", "axis_0")
    assert value.shape == (45, 2, 2)
    assert value.hook_point.values.tolist() == [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    stream = run.residual_stream.residual
    np.testing.assert_allclose(
        value[:, :, 0], stream.isel(layer=slice(1, None)).mean("width"), atol=1e-5
    )


def test_a_hook_file_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from recovery_probe.recorders import Recorder, Layout, Array\n"
        "def top(tensor, *, hook):\n    return tensor.abs().max().item()\n"
        "class Mine(Recorder):\n"
        "    name = 'mine'\n"
        "    def start(self, training):\n"
        "        return Layout({'lr': Array('step', (), (), 'learning rate', '1')})\n"
        "    def after_step(self, step):\n        return {'lr': 0.1}\n"
    )
    config = tmp_path / "run.toml"
    config.write_text(to_toml(tiny(epochs=1, recorders=ALL)))
    argv = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    argv += ["--hook", f"{file}:top@blocks.*.mlp.hook_post", "--record", f"{file}:Mine"]
    main([*argv, "--no-record", "checkpoints", "gradients", "document_gradients"])
    run = rp.open_run(tmp_path / "run")
    assert run.recorders == ["mine", "residual_stream", "token_losses", "top", "weight_deltas"]
    assert (run.recorder("mine").lr.values == np.float32(0.1)).all()
    assert (run.recorder("top").value.values > 0).all()


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


def test_a_hook_that_would_change_training_is_refused_with_the_mend(tmp_path: Path) -> None:
    hooks = [("blocks.0.hook_resid_post", halved)]
    said = r"halved .*blocks.0.hook_resid_post.*--intervene edit --edit.hooks .*interventions=\["
    for during in ("training", "evaluation"):
        with pytest.raises(rp.HookError, match=said):
            rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=hooks, hook_during=during)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["plain", "data"])
def test_changes_in_place_are_refused(how: str, tmp_path: Path) -> None:
    def louder(tensor: torch.Tensor, *, hook: Any) -> float:
        (tensor.data if how == "data" else tensor).mul_(1.5)
        return 1.0

    with pytest.raises(rp.HookError, match=r"louder changed the activation in place .*hook_out"):
        rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=[("blocks.0.hook_out", louder)])

    class Louder(Recorder):
        name = "louder"

        def start(self, training: rp.Training) -> Layout:
            return Layout(hooks=(Hook("blocks.0.hook_out", self.see),))

        def see(self, tensor: torch.Tensor, *, hook: Any, moment: Any) -> None:
            louder(tensor.detach(), hook=hook)

    with pytest.raises(rp.HookError, match="recorder louder changed the activation"):
        rp.fit(tiny(recorders=[]), tmp_path / "other", hooks=[Louder])


def test_hooks_ask_for_step_and_document(tmp_path: Path) -> None:
    def asks(tensor: torch.Tensor, *, hook: Any, scale: float, step: Any, document: int) -> Any:
        return [document, -1 if step is None else step, tensor.shape[0], tensor.detach().mean()]

    function = functools.partial(asks, scale=1.0)
    recorder = HookRecorder(["blocks.1.hook_out"], function, name="who", during="both")
    settings = tiny(epochs=1, eval_batch=3, recorders=[])
    run = rp.fit(settings, tmp_path / "run", hooks=[recorder])
    who = run.recorder("who").load()
    assert who.value[:, 0, 0].values.tolist() == np.repeat(run.schedule.values, 3).tolist()
    assert who.value[:, 0, 1].values.tolist() == list(range(15))
    assert who.evaluated.dims[:3] == (EPISODE, "hook_point", "document")
    assert (who.evaluated[:, 0, :, 0].values == np.arange(7)).all()
    assert (who.evaluated[:, 0, :, 1:3].values == [-1, 1]).all()
    # Right before a first step, training and evaluation see the same activations.
    trained = who.value[::3, 0, 3].values
    before = [who.evaluated.values[e, 0, d, 3] for e, d in enumerate(run.schedule.values)]
    np.testing.assert_allclose(trained, before, atol=1e-5)


@pytest.mark.parametrize("value", ["1.5", b"x", {}, 1j, np.datetime64(1, "s"), [[1], [1, 2]]])
def test_what_is_no_number_is_refused_in_the_trial(value: Any, tmp_path: Path) -> None:
    def odd(tensor: torch.Tensor, *, hook: Any) -> Any:
        return value

    with pytest.raises(rp.HookError, match=r"hook odd returned a .* the trial before training"):
        rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=[("blocks.0.hook_out", odd)])
    assert not (tmp_path / "run").exists()


def test_nothing_at_a_point_is_nan_and_not_an_old_value(tmp_path: Path) -> None:
    def sometimes(tensor: torch.Tensor, *, hook: Any, step: int) -> float | None:
        return None if step % 2 and hook.name.startswith("blocks.0") else float(step)

    hooks = [("blocks.*.hook_out", sometimes)]
    value = (
        rp.fit(tiny(epochs=1, recorders=[]), tmp_path / "run", hooks=hooks)
        .recorder("sometimes")
        .value
    )
    points = value.hook_point.values.astype(object)
    first, second = (value[:, points == f"blocks.{i}.hook_out"] for i in (0, 1))
    steps = np.arange(15.0)
    assert second.values[:, 0].tolist() == steps.tolist()
    np.testing.assert_array_equal(first.values[:, 0], np.where(steps % 2, np.nan, steps))


def test_a_failing_hook_is_named_and_the_record_kept(tmp_path: Path) -> None:
    calls = 0

    def fails_later(tensor: torch.Tensor, *, hook: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise ZeroDivisionError("half-way")
        return float(tensor.detach().mean())

    seen: list[Any] = []

    class Spy(Recorder):
        name = "spy"

        def start(self, training: rp.Training) -> Layout:
            seen.append(training.model)
            return Layout({})

    said = r"fails_later failed in step 7, at blocks.1.hook_resid_post, .*\(1, 24, 32\).*half-way"
    hooks = [("blocks.1.hook_resid_post", fails_later), Spy]
    with pytest.raises(rp.HookError, match=said):
        rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=hooks)
    run = rp.open_run(tmp_path / "run")
    assert run.status == "failed"
    assert "half-way" in run.provenance["message"]
    assert run.episodes_done == 2
    assert run.recorder("fails_later").sizes[STEP] == 6
    points = seen[0].bridge.hook_dict.values()
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in points)


@pytest.mark.parametrize(
    ("pattern", "function", "said"),
    [
        ("blocks.*.hook_residual_post", halved, "no hook point is called"),
        ("blocks.0.hook_out", lambda tensor: 0.0, "expected a function"),
        ("*hook_pattern*", lambda t, *, hook: 0 / 0, "the trial before training"),
        ("blocks.0.*hook_out", lambda t, *, hook: t.flatten()[: t.shape[-1]], "different shapes"),
    ],
)
def test_wrong_hooks(pattern: str, function: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises((rp.InputError, rp.HookError), match=said):
        rp.fit(tiny(recorders=[]), tmp_path / "run", hooks=[("mine", pattern, function)])
    assert not (tmp_path / "run").exists()
