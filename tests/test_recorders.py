"""What was recorded, against autograd and plain Hugging Face, never against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import models, plugins
from recovery_probe.recorders import EPISODE, STEP
from recovery_probe.sketch import ModuleSketches, Sketch
from recovery_probe.testing import check_recorder

INSTALLED = sorted(plugins.installed("recorders"))
DEFAULT = rp.preset("quickstart").recorders
ONE = ["residual_stream", "checkpoints"]


@pytest.mark.parametrize("name", INSTALLED)
def test_ours_conform(name: str) -> None:
    check_recorder(plugins.find("recorders", name))


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
    dataset = check_recorder(plugins.find("recorders", name)(every=every))
    time = EPISODE if name == "document_gradients" else STEP
    assert dataset.sizes[time] == count


@pytest.mark.parametrize("every", ["0 steps", "often", "-1 episodes", "5", ""])
def test_wrong_frequencies_are_named(every: str, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match="expected 'step', '5 steps', 'episode'"):
        rp.fit(tiny(recorders=["gradients"], gradients={"every": every}), tmp_path / "run")
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
        recorders=ONE,
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
        reduce: rp.fit(
            tiny(epochs=1, recorders=ONE, residual_stream={"reduce": reduce}), tmp_path / reduce
        )
        for reduce in ("mean", "last", "all")
    }
    streams = {reduce: run.residual_stream.residual.values for reduce, run in runs.items()}
    assert streams["all"].dtype == np.float16
    full = streams["all"].astype("float32")
    np.testing.assert_allclose(full.mean(axis=2), streams["mean"], atol=5e-3)
    np.testing.assert_allclose(full[:, :, -1], streams["last"], rtol=2e-3, atol=5e-3)


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
        recorders=["gradients"],
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
    settings = tiny(
        optimizer=optimizer,
        weight_deltas={"every": every},
        model={"dtype": "float64"},
        recorders=["weight_deltas", "checkpoints"],
    )
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
    # Half-way too.
    middle = run.model_at(5).parameters
    half, _ = ModuleSketches(start, settings.sketch)(
        {n: middle[n].detach() - start[n].detach() for n in start}
    )
    assert np.abs(trajectory.sel(episodes_done=5).values - half.numpy()).max() < 1e-5 * scale


def test_losses_are_the_same_with_and_without_recorders(tmp_path: Path) -> None:
    model = {"architecture": "llama", "dropout": 0.1}
    every = rp.fit(tiny(recorders=INSTALLED, model=model), tmp_path / "every")
    none = rp.fit(tiny(recorders=[], model=model), tmp_path / "none")
    assert np.array_equal(every.losses, none.losses)
    assert np.array_equal(every.train_loss, none.train_loss)


def test_attention_entropy_of_even_patterns(tmp_path: Path) -> None:
    """With no weights, position t attends evenly to t + 1 positions: entropy ln(t + 1)."""
    model = models.load(tiny())
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
    recorded = rp.fit(settings, tmp_path / "run").attention_patterns
    expected = np.mean(np.log(np.arange(1, 25)))
    np.testing.assert_allclose(recorded.entropy[0], expected, rtol=1e-5)
    np.testing.assert_allclose(recorded.pattern[0].sum("key"), 1, rtol=2e-3)


def test_checkpoints_and_their_doors(tmp_path: Path) -> None:
    run = rp.fit(tiny(), tmp_path / "run")
    assert [f.name for f in sorted((run.path / "checkpoints").iterdir())] == [
        f"episodes-{n:05d}" for n in (0, 5, 10, 15)
    ]
    model = run.model_at(episodes_done=10)
    tokens = torch.tensor(run.record.tokens.values)
    with torch.no_grad():
        losses = model.losses({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)})
    np.testing.assert_allclose(losses.numpy(), run.losses.values[10], atol=1e-5)
    weights = run.weights_at(10)
    assert set(weights) == set(model.state_dict())
    with pytest.raises(rp.InputError, match=r"no checkpoint after 7 episodes; .* 0, 5, 10, 15"):
        run.saved_model(7)
    few = rp.fit(tiny(checkpoints={"every": "5 episodes", "keep": 2}), tmp_path / "few")
    assert len(list((few.path / "checkpoints").iterdir())) == 2
    none = rp.fit(tiny(recorders=[]), tmp_path / "none")
    assert not (none.path / "checkpoints").exists()


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
    moved = [(end[n].detach().float() - start[n].detach().float()).norm() for n in start]
    recorded = float((deltas.norm**2).sum())
    assert recorded <= 1.5 * float(sum(m**2 for m in moved)) + 1e-12
    assert (deltas.norm.sel(kind="ln1") == 0).all()
    assert deltas.norm.attrs["covers"] == "stretch"


def test_the_last_weights_are_kept(tmp_path: Path) -> None:
    settings = tiny(recorders=["checkpoints"], checkpoints={"every": "7 episodes"})
    rp.fit(settings, tmp_path / "run")
    kept = sorted(int(f.name[-5:]) for f in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [0, 7, 14, 15]
