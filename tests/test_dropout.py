"""Dropout in training is the model's own, or is refused: against plain Hugging Face models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from networks import local_model
from transformers import AutoConfig, AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import cli, config, models
from recovery_probe.seeds import torch_seed


def with_dropout(folder: Path, **dropouts: float) -> Path:
    """The same weights under a configuration with these dropouts, written by transformers."""
    settings = AutoConfig.from_pretrained(folder)
    settings.update(dropouts)
    settings.save_pretrained(folder)
    return folder


def plain_train_losses(run: rp.Run, episode: int, folder: Path) -> list[float]:
    """Losses of an episode's steps by a plain model in training mode, from its checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=run.config.optimizer.lr)
    row = torch.tensor(run.record.tokens.values[int(run.schedule.values[episode])])[None]
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(run.config.seed.order, f"dropout of episode {episode}"))
        for _ in range(run.config.steps):
            optimizer.zero_grad()
            loss = model(input_ids=row, labels=row).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "recorders"),
    [("llama", ("residual_stream", "checkpoints")), ("opt", ("checkpoints",))],
)
def test_training_with_dropout_is_a_plain_models(
    architecture: str, recorders: tuple[str, ...], tmp_path: Path
) -> None:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0.2}
    run = rp.fit(tiny(epochs=1, model=wanted, recorders=recorders), tmp_path / "run")
    first = run.path / "checkpoints" / "episodes-00000"
    expected = plain_train_losses(run, 0, first)
    assert np.abs(np.subtract(expected, run.losses.values[0, 0])).min() > 1e-4  # it did something
    np.testing.assert_allclose(run.train_loss.values[: len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "dropouts"),
    [
        ("gpt_neox", {"attention_dropout": 0.1}),
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("gpt2", {"resid_pdrop": 0.01, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    ],
)
def test_dropout_that_would_not_be_the_models_own_is_refused(
    architecture: str, dropouts: dict[str, float], tmp_path: Path
) -> None:
    folder = with_dropout(local_model(tmp_path / "model", architecture), **dropouts)
    (name, value) = next((n, v) for n, v in dropouts.items() if v)
    said = f"{name} = {value:g}.*--model.dropout 0"
    for dtype in ("float32", "bfloat16") if value > 0.05 else ("float32",):
        with pytest.raises(rp.InputError, match=said) as error:
            models.load(tiny(model={"source": str(folder), "dtype": dtype}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["phi3", "falcon", "gpt_bigcode", "starcoder2", "gpt2"])
def test_architectures_whose_dropout_is_lost_are_refused_and_train_without(
    architecture: str,
) -> None:
    wanted: dict[str, Any] = {"architecture": architecture, "init": "library"}
    with pytest.raises(rp.InputError, match=r"--model\.dropout 0"):
        models.load(tiny(model={**wanted, "dropout": 0.1}))
    models.load(tiny(model={**wanted, "dropout": 0}))


def test_dropout_of_0_takes_a_loaded_models_own_away(tmp_path: Path) -> None:
    """A hub GPT-2 has .1 everywhere: without it, training mode is evaluation mode."""
    dropouts = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    folder = with_dropout(local_model(tmp_path / "model", "gpt2"), **dropouts)
    wanted = {"source": str(folder), "dropout": 0}
    run = rp.fit(tiny(epochs=1, model=wanted, optimizer={"lr": 0.01}), tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(folder, **dict.fromkeys(dropouts, 0.0))
    plain.save_pretrained(tmp_path / "plain")
    expected = plain_train_losses(run, 0, tmp_path / "plain")
    np.testing.assert_allclose(run.train_loss.values[: len(expected)], expected, atol=1e-5)
    saved = AutoConfig.from_pretrained(run.path / "checkpoints" / "episodes-00005")
    assert {name: getattr(saved, name) for name in dropouts} == dict.fromkeys(dropouts, 0.0)


@pytest.mark.parametrize(("given", "kept"), [("own", "own"), ("0", 0.0), (".25", 0.25)])
def test_the_setting_survives_the_command_line_and_toml(
    given: str, kept: str | float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[rp.Settings] = []
    monkeypatch.setattr(
        "recovery_probe.train.fitting.fit", lambda settings, *_, **__: seen.append(settings)
    )
    with pytest.raises(BaseException):  # noqa: B017, PT011  (there is no run to go on with)
        cli.main(["train", "quickstart", "--model.dropout", given, "--out", str(tmp_path / "x")])
    (settings,) = seen
    assert settings.model.dropout == kept
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(settings))
    assert config.load(path) == settings


@pytest.mark.parametrize("wrong", [1, -0.1, "x", True])
def test_wrong_dropouts_are_named(wrong: object) -> None:
    with pytest.raises(rp.InputError, match=r"model\.dropout = "):
        tiny(model={"dropout": wrong})
