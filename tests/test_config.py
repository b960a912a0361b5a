"""Settings: checked on every way in, and written so that they read back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import recovery_probe as rp
from recovery_probe import config


@pytest.mark.parametrize("name", list(config.presets()))
def test_every_preset_loads_and_reads_back(name: str, tmp_path: Path) -> None:
    settings = rp.preset(name)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(settings))
    assert config.load(path) == settings


def test_paper_preset_is_the_papers_protocol() -> None:
    s = rp.preset("paper")
    assert (s.documents.count, s.documents.tokens, s.steps, s.epochs) == (25, 256, 10, 5)
    assert (s.optimizer.name, s.optimizer.lr, s.optimizer.momentum) == ("sgd", 1e-3, 0.0)
    assert s.model.source == "EleutherAI/pythia-1b"
    assert "cnn_dailymail" in s.documents.source


def test_the_names_are_those_of_the_toml() -> None:
    values = tomllib.loads(config.to_toml(config.Settings()))
    flat = {
        f"{k}.{i}" if isinstance(v, dict) else k
        for k, v in values.items()
        for i in (v if isinstance(v, dict) else [None])
    }
    assert set(config.names()) == flat


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "unknown setting epoch; did you mean 'epochs'?"),
        ({"optimizer": {"learning_rate": 1}}, "unknown setting optimizer.learning_rate"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr = 0: should be greater than 0"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr = -1.0: should be greater than 0"),
        ({"optimizer": {"lr": float("inf")}}, "finite"),
        ({"epochs": "six"}, "epochs = 'six': should be a valid integer"),
        ({"epochs": 2.5}, "epochs = 2.5"),
        ({"epochs": True}, "epochs = True"),
        ({"documents": {"count": 1}}, "documents.count = 1"),
        ({"schedule": {"kind": "random"}}, "'cyclic' or 'shuffled'"),
        ({"model": "pythia"}, "model = 'pythia'"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "belongs to sgd"),
        ({"schedule": {"kind": "shuffled"}}, "compare a shuffled run with itself"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(rp.InputError) as error:
        rp.preset("quickstart", **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_made_by_hand_are_checked_too(tmp_path: Path) -> None:
    settings = rp.preset("quickstart")
    wrong = replace(settings, optimizer=replace(settings.optimizer, lr=-1.0))
    with pytest.raises(rp.InputError, match=r"optimizer\.lr"):
        rp.fit(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_purposes_draw_independent_numbers() -> None:
    draws = {p: config.generator(0, p).integers(2**60) for p in ("documents", "schedule", "x")}
    assert len(set(draws.values())) == 3
    assert draws["x"] == config.generator(0, "x").integers(2**60)
    assert draws["x"] != config.generator(1, "x").integers(2**60)
