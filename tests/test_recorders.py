"""What was recorded, against autograd and plain Hugging Face, never against itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from test_train import local_model
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import models, plugins
from recovery_probe.cli import main
from recovery_probe.recorders import (
    EPISODE,
    STEP,
    Array,
    Episode,
    Layout,
    Recorder,
    RunInfo,
    times,
)
from recovery_probe.recorders.document_gradients import DocumentGradients
from recovery_probe.recorders.recording import Recording, find
from recovery_probe.sketch import ModuleSketches, Sketch, module_of
from recovery_probe.testing import check_recorder
from recovery_probe.train import batch, losses_of

INSTALLED = sorted(plugins.installed("recorders"))
DEFAULT = rp.preset("quickstart").recorders


@pytest.mark.parametrize("name", INSTALLED)
def test_ours_conform(name: str) -> None:
    check_recorder(plugins.find("recorders", name, type))


@pytest.mark.parametrize(
    ("name", "every", "count"),
    [
        ("residual_stream", "5 steps", 9),
        ("residual_stream", "episode", 15),
        ("gradients", "epoch", 3),
        ("weight_deltas", "episode", 15),
        ("weight_deltas", "4 steps", 12),
        ("attention_patterns", "2 episodes", 8),
        ("document_gradients", "5 episodes", 4),
    ],
)
def test_frequencies(name: str, every: str, count: int) -> None:
    found = check_recorder(plugins.find("recorders", name, type), **{name: {"every": every}})
    dimension = EPISODE if name == "document_gradients" else STEP
    assert found.sizes[dimension] == count


@pytest.mark.parametrize("every", ["0 steps", "often", "-1 episodes", "5", ""])
def test_wrong_frequencies_are_named(every: str, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match="expected 'step', '5 steps', 'episode'"):
        rp.fit(tiny(gradients={"every": every}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2"])
def test_residual_streams_are_hugging_faces_hidden_states(
    architecture: str, tmp_path: Path
) -> None:
    folder = local_model(tmp_path / "model", architecture)
    settings = tiny(
        epochs=1,
        steps=1,
        model={"source": str(folder)},
        documents={"tokens": 200, "min_tokens": 2, "count": 4},
        residual_stream={"focal": 2},
    )
    run = rp.fit(settings, tmp_path / "run")
    lengths, tokens = run.record.length.values, torch.tensor(run.record.tokens.values)
    assert (lengths < 200).any()

    def hidden(model: Any, document: int) -> list[torch.Tensor]:
        """The streams of a plain model. Its last hidden state has passed the final norm, which
        a hook in front of that norm sees before."""
        last: list[torch.Tensor] = []
        base = model.base_model
        (norm,) = (m for n, m in base.named_children() if n in ("final_layer_norm", "norm", "ln_f"))
        handle = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        with torch.no_grad():
            states = model(
                tokens[None, document, : lengths[document]], output_hidden_states=True
            ).hidden_states
        handle.remove()
        return [s[0] for s in (*states[:-1], last[0])]

    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    first = torch.stack([s.mean(0) for s in hidden(plain, 0)])
    np.testing.assert_allclose(run.residual_stream.residual.values[0], first, atol=1e-5)
    final = run.residual_stream.final.values
    np.testing.assert_allclose(final[0, : lengths[2]], hidden(plain, 2)[-1], rtol=2e-3, atol=1e-2)
    assert np.isnan(final[0, lengths[2] :]).all()
    after = AutoModelForCausalLM.from_pretrained(run.path / "checkpoints" / "episodes-00004").eval()
    np.testing.assert_allclose(final[4, : lengths[2]], hidden(after, 2)[-1], rtol=2e-3, atol=1e-2)


def test_other_reductions(tmp_path: Path) -> None:
    runs = {
        reduce: rp.fit(tiny(epochs=1, residual_stream={"reduce": reduce}), tmp_path / reduce)
        for reduce in ("mean", "last", "all")
    }
    streams = {reduce: run.residual_stream.residual.values for reduce, run in runs.items()}
    assert streams["all"].dtype == np.float16
    full = streams["all"].astype("float32")
    np.testing.assert_allclose(full.mean(axis=2), streams["mean"], atol=5e-3)
    np.testing.assert_allclose(full[:, :, -1], streams["last"], rtol=2e-3, atol=5e-3)


def info(settings: rp.Settings, path: Path) -> RunInfo:
    model = models.load(settings)
    from recovery_probe import documents, schedule

    docs = documents.load(settings, model.tokenize)
    tokens, targets = batch(docs, model.device)
    return RunInfo(
        settings,
        model,
        tokens,
        targets,
        docs.lengths,
        schedule.document_of_episode(settings),
        path,
        ModuleSketches(model.parameters, settings.sketch),
    )


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_document_gradients_equal_autograds(
    architecture: str, dtype: str, bound: float, tmp_path: Path
) -> None:
    """Against one backward pass for each document."""
    if architecture == "qwen3":
        model: dict[str, Any] = {"architecture": "qwen3", "init": "library"}
    else:
        model = {"source": str(local_model(tmp_path / "model", architecture))}
    settings = tiny(
        model={**model, "dtype": dtype},
        documents={"tokens": 150, "min_tokens": 2, "count": 4, "held_out": 2},
    )
    run = info(settings, tmp_path)
    recorder = DocumentGradients()
    recorder.start(run)
    found = recorder.products().numpy()
    parameters = run.model.parameters
    run.model.train(False)
    each: list[dict[str, torch.Tensor]] = []
    for i in range(6):
        loss = losses_of(run.model, run.tokens[i : i + 1], run.targets[i : i + 1])[0]
        loss.backward()
        each.append({n: p.grad.double().flatten() for n, p in parameters.items()})
        for p in parameters.values():
            p.grad = None
    expected = np.zeros_like(found)
    for row, module in enumerate(run.sketches.modules):
        own = [n for n in parameters if module_of(n) == module]
        stacked = torch.stack([torch.cat([g[n] for n in own]) for g in each])
        expected[row] = (stacked @ stacked.T).numpy()
    scale = np.sqrt(np.einsum("mii->mi", expected))
    scale = scale[:, :, None] * scale[:, None, :]
    assert (np.abs(found - expected) / scale).max() < bound
    total = np.stack([torch.cat(list(g.values())).numpy() for g in each])
    error = np.abs(found.sum(0) - total @ total.T) / np.abs(total @ total.T).max()
    assert error.max() < bound
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in run.model.bridge.hook_dict.values())


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-6), ("float32", 1e-5)])
def test_gradients_equal_a_plain_models(
    architecture: str, dtype: str, bound: float, tmp_path: Path
) -> None:
    """Total norm and total sketch error against a plain Hugging Face model's gradient; split
    parts against the sketch of autograd's own. (What is recorded is float32.)"""
    folder = local_model(tmp_path / "model", architecture)
    settings = tiny(
        epochs=1,
        steps=1,
        model={"source": str(folder), "dtype": dtype},
        documents={"tokens": 100, "min_tokens": 100},
        optimizer={"lr": 1e-12},
    )
    run = rp.fit(settings, tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(folder).to(getattr(torch, dtype))
    gradients = run.gradients.load()
    for document in range(3):
        plain.zero_grad()
        row = torch.tensor(run.record.tokens.values[document])[None]
        plain(input_ids=row, labels=row).loss.backward()
        exact = {n: p.grad for n, p in plain.named_parameters()}
        total = torch.cat([g.flatten().double() for g in exact.values()]).norm().item()
        ours = float(np.sqrt((gradients.norm.values[document].astype("float64") ** 2).sum()))
        assert ours == pytest.approx(total, rel=bound)
        # One whole matrix that no bridge splits, under its two names.
        name = {
            "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
            "llama": "model.layers.1.mlp.down_proj",
            "gpt2": "transformer.h.1.mlp.c_proj",
        }[architecture]
        out = gradients.sel(kind="mlp.out", block=1).isel(step=document)
        expected = torch.zeros(settings.sketch, dtype=torch.float64)
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in exact:
                g = exact[f"{name}.{kind}"].double()
                sketch = Sketch(f"blocks.1.mlp.out.{kind}", g.numel(), settings.sketch)
                expected += sketch(g)
        scale = float(expected.norm())
        np.testing.assert_allclose(
            np.squeeze(out.sketched.values), expected, atol=10 * bound * scale
        )


OPTIMIZERS = [
    {"name": "sgd", "lr": 0.05},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9},
    {"name": "sgd", "lr": 0.02, "weight_decay": 0.05},
    {"name": "adam", "lr": 1e-3, "reset": True},
    {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("every", ["step", "episode"])
def test_updates_add_up_to_the_way_travelled(
    optimizer: dict[str, Any], every: str, tmp_path: Path
) -> None:
    settings = tiny(optimizer=optimizer, weight_deltas={"every": every}, model={"dtype": "float64"})
    run = rp.fit(settings, tmp_path / "run")
    start, end = run.model_at(0).parameters, run.model_at(15).parameters
    moved = {n: end[n].detach() - start[n].detach() for n in start}
    sketched, _ = ModuleSketches(start, settings.sketch)(moved)
    trajectory = run.weight_trajectory()
    assert trajectory.dims == (EPISODE, "module", "sketch")
    assert trajectory.episodes_done.values.tolist() == list(range(16))
    assert not trajectory[0].any()
    scale = float(sketched.norm())
    assert np.abs(trajectory[-1].values - sketched.numpy()).max() < 1e-5 * scale
    # Half-way too, and the norm of the first recorded update is that of the weights' difference.
    middle = run.model_at(5).parameters
    half, _ = ModuleSketches(start, settings.sketch)(
        {n: middle[n].detach() - start[n].detach() for n in start}
    )
    assert np.abs(trajectory.sel(episodes_done=5).values - half.numpy()).max() < 1e-5 * scale


def test_losses_are_the_same_with_and_without_recorders(tmp_path: Path) -> None:
    model = {"architecture": "llama", "dropout": 0.1}
    one = rp.fit(tiny(recorders=INSTALLED, model=model), tmp_path / "one")
    none = rp.fit(tiny(recorders=[], model=model), tmp_path / "none")
    assert np.array_equal(one.losses, none.losses)
    assert np.array_equal(one.train_loss, none.train_loss)


def test_attention_entropy_of_even_patterns(tmp_path: Path) -> None:
    """With no weights, position t attends evenly to t + 1 positions: entropy ln(t + 1)."""
    settings = tiny(epochs=1, steps=1, attention_patterns={"patterns": True})
    model = models.load(settings)
    with torch.no_grad():
        for p in model.parameters.values():
            p.zero_()
    model.save(tmp_path / "model")
    settings = tiny(
        epochs=1,
        steps=1,
        model={"source": str(tmp_path / "model")},
        attention_patterns={"patterns": True},
        recorders=["attention_patterns"],
    )
    found = rp.fit(settings, tmp_path / "run").attention_patterns
    expected = np.mean(np.log(np.arange(1, 25)))
    np.testing.assert_allclose(found.entropy[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.pattern[0].sum("key"), 1, rtol=2e-3)


def test_checkpoints_and_their_doors(tmp_path: Path) -> None:
    run = rp.fit(tiny(), tmp_path / "run")
    assert [f.name for f in sorted((run.path / "checkpoints").iterdir())] == [
        f"episodes-{n:05d}" for n in (0, 5, 10, 15)
    ]
    model = run.model_at(episodes_done=10)
    tokens = torch.tensor(run.record.tokens.values)
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        losses = losses_of(model, tokens, targets)
    np.testing.assert_allclose(losses.numpy(), run.losses.values[10], atol=1e-5)
    weights = run.weights_at(10)
    assert set(weights) == set(model.state_dict())
    with pytest.raises(rp.InputError, match=r"no checkpoint after 7 episodes; .* 0, 5, 10, 15"):
        run.weights_at(7)
    few = rp.fit(tiny(checkpoints={"every": "5 episodes", "keep": 2}), tmp_path / "few")
    assert len(list((few.path / "checkpoints").iterdir())) == 2
    none = rp.fit(tiny(recorders=[]), tmp_path / "none")
    assert not (none.path / "checkpoints").exists()


def test_a_recorder_that_was_off_is_told_with_the_mend(tmp_path: Path) -> None:
    run = rp.fit(tiny(recorders=["gradients"], epochs=1), tmp_path / "run")
    with pytest.raises(rp.InputError, match=r"residual_stream was off.*--record residual_stream"):
        run.residual_stream  # noqa: B018
    with pytest.raises(AttributeError):
        run.nonsense  # noqa: B018


def test_cost_and_sketch_error_are_in_the_provenance(pair: rp.Run) -> None:
    cost = pair.provenance["recorders"]
    assert set(cost) == set(DEFAULT)
    assert all(0 <= c["share"] < 1 for c in cost.values())
    error = cost["gradients"]["sketch_error"]
    assert error["compared"] > 20
    assert 0 < error["rms"] < 2 * error["expected_at_most"]


def test_what_will_be_written_is_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rp.fit(tiny(epochs=1), tmp_path / "run")
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if line.startswith("record ")]
    assert [line.split()[1].rstrip(":") for line in lines] == list(DEFAULT)
    assert told.index(lines[-1]) < next(i for i, t in enumerate(told) if "epoch 1" in t)
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
    small = info(tiny(model={"depth": 16}), tmp_path)
    small.model.bridge.cfg.d_model = 2048
    tokens = small.tokens.new_zeros(30, 256)
    big = RunInfo(
        settings,
        small.model,
        tokens,
        tokens,
        np.full(30, 256),
        np.zeros(125, "int32"),
        tmp_path,
        small.sketches,
    )
    sizes = Recording(find(settings), big).sizes()
    total = sum(size for arrays in sizes.values() for _, size in arrays.values())
    assert sizes["gradients"]["sketched"][0] == (1250, 131, 127)
    assert 300e6 < total < 500e6


# --- hooks ------------------------------------------------------------------------------------


def test_a_hook_function_is_recorded(tmp_path: Path) -> None:
    def two(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return torch.stack([tensor.mean(), tensor.std()])

    run = rp.fit(tiny(), tmp_path / "run", hooks=[("blocks.*.hook_resid_post", two)])
    found = run.recorder("two").value
    assert found.dims == (STEP, "hook_point", "axis_0")
    assert found.shape == (45, 2, 2)
    assert found.hook_point.values.tolist() == [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    stream = run.residual_stream.residual
    np.testing.assert_allclose(
        found[:, :, 0], stream.isel(layer=slice(1, None)).mean("width"), atol=1e-5
    )


def test_a_hook_file_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from recovery_probe.recorders import Recorder, Layout, Array\n"
        "def top(tensor, *, hook):\n    return tensor.abs().max().item()\n"
        "class Mine(Recorder):\n"
        "    name = 'mine'\n"
        "    def start(self, run):\n"
        "        return Layout({'lr': Array('step', (), (), 'learning rate', '1')})\n"
        "    def after_step(self, step):\n        return {'lr': 0.1}\n"
    )
    config = tmp_path / "run.toml"
    from recovery_probe.config import to_toml

    config.write_text(to_toml(tiny(epochs=1)))
    argv = ["train", "--config", str(config), "--out", str(tmp_path / "run")]
    argv += ["--hook", f"{file}:top@blocks.*.mlp.hook_post", "--record", f"{file}:Mine"]
    main([*argv, "--no-record", "checkpoints", "gradients", "document_gradients"])
    run = rp.open_run(tmp_path / "run")
    assert run.recorders == ["mine", "residual_stream", "token_losses", "top", "weight_deltas"]
    assert (run.recorder("mine").lr.values == np.float32(0.1)).all()
    assert (run.recorder("top").value.values > 0).all()


def edit(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return tensor * 0.5


def test_an_edit_is_refused_unless_allowed(tmp_path: Path) -> None:
    hooks = [("blocks.0.hook_resid_post", edit)]
    with pytest.raises(rp.HookError, match=r"edit .*blocks.0.hook_resid_post.*--hook-may-edit"):
        rp.fit(tiny(epochs=1), tmp_path / "no", hooks=hooks)
    with pytest.raises(rp.InputError, match=r"hook edit may edit.*--no-record document_gradients"):
        rp.fit(tiny(epochs=1), tmp_path / "no", hooks=hooks, hook_may_edit=True)
    assert not (tmp_path / "no").exists()
    settings = tiny(epochs=1, recorders=[r for r in DEFAULT if r != "document_gradients"])
    edited = rp.fit(settings, tmp_path / "yes", hooks=hooks, hook_may_edit=True)
    plain = rp.fit(settings, tmp_path / "plain")
    assert not np.allclose(edited.train_loss, plain.train_loss)
    assert not np.allclose(edited.losses[0], plain.losses[0])
    assert float(edited.losses[0, 0]) == pytest.approx(float(edited.train_loss[0]), abs=1e-5)
    assert "edit@blocks.0.hook_resid_post in both (may edit)" in repr(edited)


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

        def start(self, run: RunInfo) -> Layout:
            seen.append(run.model)
            return Layout({})

    said = r"fails_later failed in step 7, at blocks.1.hook_resid_post, .*\(1, 24, 32\).*half-way"
    hooks = [("blocks.1.hook_resid_post", fails_later), Spy]
    with pytest.raises(rp.HookError, match=said):
        rp.fit(tiny(), tmp_path / "run", hooks=hooks)
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
        ("blocks.*.hook_residual_post", edit, "no hook point is called"),
        ("blocks.0.hook_out", lambda tensor: 0.0, "expected a function"),
        ("*hook_pattern*", lambda t, *, hook: 0 / 0, "the trial before training"),
        ("blocks.0.*hook_out", lambda t, *, hook: t.flatten()[: t.shape[-1]], "different shapes"),
    ],
)
def test_wrong_hooks(pattern: str, function: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises((rp.InputError, rp.HookError), match=said):
        rp.fit(tiny(), tmp_path / "run", hooks=[("mine", pattern, function)])
    assert not (tmp_path / "run").exists()


def test_a_recorder_class_with_every_moment(tmp_path: Path) -> None:
    order: list[str] = []

    class Mine(Recorder):
        name = "mine"

        def start(self, run: RunInfo) -> Layout:
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

    run = rp.fit(tiny(epochs=1, steps=2), tmp_path / "run", hooks=[Mine])
    episode = ["before_step", "after_backward", "after_step"] * 2 + ["after_episode"]
    assert order == ["start", "after_episode", *episode * 5, "finish"]
    assert run.recorder("mine").twice.values.tolist() == [0, 2, 4, 6, 8, 10]
    assert run.provenance["recorders"]["mine"]["mine"] == "done"


def test_conformance_catches_what_it_should() -> None:
    class Meddles(Recorder):
        name = "meddles"

        def start(self, run: RunInfo) -> Layout:
            return Layout({"a": Array(STEP, (), (), "nothing", "1")})

        def after_backward(self, step: Any) -> dict[str, float]:
            next(iter(step.model.parameters.values())).grad.mul_(2)
            return {"a": 1.0}

    class Forgets(Recorder):
        name = "forgets"

        def start(self, run: RunInfo) -> Layout:
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
        (None, "recorder wrong failed at step 0: ZeroDivisionError"),
    ],
)
def test_a_wrong_recorder_is_named(rows: Any, said: str, tmp_path: Path) -> None:
    class Wrong(Recorder):
        name = "wrong"

        def start(self, run: RunInfo) -> Layout:
            return Layout({"a": Array(STEP, (), (), "nothing", "1")})

        def after_step(self, step: Any) -> Any:
            return rows or 1 / 0

    with pytest.raises(rp.HookError, match=said):
        rp.fit(tiny(), tmp_path / "run", hooks=[Wrong])
    assert rp.open_run(tmp_path / "run").status == "failed"


def test_times() -> None:
    settings = tiny()  # T = 5, E = 3, M = 3
    assert times("step", settings, STEP).tolist() == list(range(45))
    assert times("10 steps", settings, STEP).tolist() == [0, 10, 20, 30, 40]
    assert times("episode", settings, STEP).tolist() == list(range(0, 45, 3))
    assert times("epoch", settings, STEP).tolist() == [0, 15, 30]
    assert times("epoch", settings, EPISODE).tolist() == [0, 5, 10, 15]
    assert times("4 episodes", settings, EPISODE).tolist() == [0, 4, 8, 12]


def test_every_recorder_file_is_an_entry_point() -> None:
    import recovery_probe.recorders as package

    others = {"__init__", "hook", "checks", "recording"}
    files = {f.stem for f in Path(package.__file__).parent.glob("*.py")} - others
    assert files == {p.name for p in entry_points(group="recovery_probe.recorders")}


def test_a_killed_run_keeps_whole_episodes_of_every_recorder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "recovery_probe.train", "quickstart", "--out", str(out)]
    command += ["--control", "none", "--epochs", "300", "--documents.count", "4"]
    command += ["--model.depth", "1", "--model.width", "32", "--steps", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if (out / "record.zarr").exists() and rp.open_run(out).episodes_done >= 9:
                break
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    run = rp.open_run(out)
    done = run.episodes_done
    assert done >= 9
    for name in run.recorders:
        dataset = run.recorder(name).load()
        for array in dataset.data_vars.values():
            expected = {STEP: 2 * done, EPISODE: done + 1}[str(array.dims[0])]
            if name == "document_gradients":  # every epoch
                expected = done // 4 + 1
            assert len(array) == expected
            assert np.isfinite(array.values.reshape(expected, -1)).any(axis=1).all()
    assert run.weight_trajectory().sizes[EPISODE] == done + 1
