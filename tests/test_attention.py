"""`model.attention = "sdpa"`: Hugging Face's own fused attention, with the hook points it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import models
from recovery_probe.hooking import hooked
from recovery_probe.models import Model, text

ARCHITECTURES = ["gpt_neox", "llama", "gpt2", "phi3", "falcon", "qwen3"]


def load(architecture: str, attention: str = "sdpa", **model: Any) -> Model:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0, **model}
    return models.load(tiny(model={**wanted, "attention": attention}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_a_plain_sdpa_model(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding where q, k and v come from one matrix, which is split here."""
    model = load(architecture)
    model.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sdpa")
    inputs = text.probe(24, model.device)
    fused = torch.nn.functional.scaled_dot_product_attention
    calls = []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: [calls.append(1), fused(*a, **k)][1],
    )
    (ours,) = model.losses(inputs)
    assert len(calls) == 2  # blocks
    ours.backward()
    theirs = plain(inputs["tokens"], labels=inputs["tokens"]).loss
    theirs.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    shared = plain.get_input_embeddings().weight.grad
    torch.testing.assert_close(model.parameters["embed.weight"].grad, shared, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hook_points_show_what_they_show_in_eager_attention(architecture: str) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for attention in ("eager", "sdpa"):
        model = load(architecture, attention)
        kept = seen.setdefault(attention, {})

        def keep(tensor: torch.Tensor, *, hook: Any, kept: Any = kept) -> None:
            kept[hook.name] = tensor.detach()

        points = [(point, "fwd", keep) for point in model.bridge.hook_dict]
        with hooked(model.bridge, points), torch.no_grad():
            model.losses(text.probe(24, model.device))
    shown = {name for name in seen["sdpa"] if name.startswith("blocks.1.attn.")}
    assert shown >= {
        f"blocks.1.attn.{point}"
        for point in ("hook_in", "q.hook_out", "k.hook_out", "v.hook_out", "o.hook_in", "hook_out")
    }
    assert not {"blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"} & shown
    assert set(seen["sdpa"]) <= set(seen["eager"])
    for name, tensor in seen["sdpa"].items():
        expected = seen["eager"][name]
        if ".q_norm." in name or ".k_norm." in name:  # heads come after positions here
            expected = expected.transpose(1, 2)
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_run_is_a_plain_sdpa_loop(architecture: str, tmp_path: Path) -> None:
    wanted = {"architecture": architecture, "init": "library", "attention": "sdpa"}
    run = rp.fit(tiny(epochs=1, model=wanted), tmp_path / "run")
    folders = [run.path / "checkpoints" / f"episodes-{done:05d}" for done in (0, 5)]
    model = AutoModelForCausalLM.from_pretrained(folders[0], attn_implementation="sdpa").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=run.config.optimizer.lr)
    tokens = torch.tensor(run.record.tokens.values)
    losses = []
    for document in run.schedule.values:
        row = tokens[[int(document)]]
        for _ in range(run.config.steps):
            optimizer.zero_grad()
            loss = model(row, labels=row).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(run.train_loss.values, losses, atol=1e-5, rtol=0)
    last = AutoModelForCausalLM.from_pretrained(folders[1], attn_implementation="sdpa")
    with torch.no_grad():
        saved = [last(row[None], labels=row[None]).loss.item() for row in tokens]
    np.testing.assert_allclose(run.losses.values[-1], saved, atol=1e-5, rtol=0)


def test_points_that_it_has_not_are_refused_by_name(tmp_path: Path) -> None:
    wanted = {"attention": "sdpa"}
    with pytest.raises(rp.InputError, match=r"hook point blocks\.0\.attn\.hook_pattern"):
        rp.fit(tiny(model=wanted, recorders=["attention_patterns"]), tmp_path / "a")
    hook = ("scores", "blocks.1.attn.hook_attn_scores", lambda tensor, hook: tensor.mean())
    with pytest.raises(rp.InputError, match=r"blocks\.1\.attn\.hook_attn_scores.*ever fires"):
        rp.fit(tiny(model=wanted, recorders=[]), tmp_path / "b", hooks=[hook])


def test_an_architecture_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=r"bloom; use --model\.attention eager"):
        load("bloom")
