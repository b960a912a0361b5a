"""Inner products of documents' gradients where they are hardest: against one backward pass for
each document, by autograd alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from test_recorders import info
from transformers import AutoConfig, AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe.models import train_tokenizer
from recovery_probe.recorders import RunInfo, document_gradients
from recovery_probe.recorders.document_gradients import DocumentGradients
from recovery_probe.sketch import module_of
from recovery_probe.train import losses_of

CASES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 64},
    "gemma": {
        "head_dim": 8,
        "intermediate_size": 64,
        "num_key_value_heads": 1,
    },  # tied, rows times √width
    "gemma2": {"head_dim": 8, "intermediate_size": 64, "num_key_value_heads": 2},
    # tied, with a bias of the unembedding; a padding token that stands in the text
    "gptj": {"rotary_dim": 4, "tie_word_embeddings": True},
    "llama": {"intermediate_size": 48, "pad_token_id": 300},
}

BOUND = 1e-6  # in float64: some of these networks compute a part in float32


def loaded(architecture: str, folder: Path, **changes: Any) -> RunInfo:
    config = AutoConfig.for_model(
        architecture,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        initializer_range=0.1,
        **CASES[architecture],
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(512).save_pretrained(folder)
    settings = tiny(
        model={"source": str(folder), "dtype": changes.pop("dtype", "float64")},
        **{"documents": {"tokens": 150, "min_tokens": 2, "count": 4, "held_out": 2}, **changes},
    )
    run = info(settings, folder)
    assert (run.tokens == 300).any()
    return run


def by_autograd(run: RunInfo) -> np.ndarray:
    """(module, document, other)"""
    parameters, each = run.model.parameters, []
    run.model.train(False)
    for i in range(len(run.tokens)):
        losses_of(run.model, run.tokens[i : i + 1], run.targets[i : i + 1])[0].backward()
        each.append({n: p.grad.double().flatten() for n, p in parameters.items()})
        for p in parameters.values():
            p.grad = None
    found = []
    for module in run.sketches.modules:
        own = [n for n in parameters if module_of(n) == module]
        stacked = torch.stack([torch.cat([g[n] for n in own]) for g in each])
        found.append((stacked @ stacked.T).numpy())
    return np.stack(found)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of a cosine."""
    norm = np.sqrt(np.einsum("mii->mi", expected))
    return float((np.abs(found - expected) / (norm[:, :, None] * norm[:, None, :] + 1e-30)).max())


@pytest.mark.parametrize("architecture", list(CASES))
@pytest.mark.parametrize(
    ("batch", "factors", "cut"),
    [(8, 2**32, 2**24), (4, 2**32, 2**24), (4, 1, 100)],
    ids=["one-batch", "batches", "passes-and-slices"],
)
def test_they_are_autograds(
    architecture: str,
    batch: int,
    factors: int,
    cut: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(document_gradients, "FACTORS", factors)
    monkeypatch.setattr(document_gradients, "SLICE", cut)
    run = loaded(architecture, tmp_path / "model", eval_batch=batch)
    recorder = DocumentGradients()
    recorder.start(run)
    assert error(recorder.products().numpy(), by_autograd(run)) < BOUND
    few = recorder.products(2).numpy()
    assert error(few, by_autograd(run)[:, :2, :2]) < BOUND


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_bfloat16_and_its_check(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 with the same weights: the squared norm of a LayerNorm's gradient, as a CPU
    sums it up in bfloat16, is 20% off."""
    run = loaded(architecture, tmp_path / "model", dtype="bfloat16")
    run.model.save(tmp_path / "rounded")
    exact = replace(run.settings.model, source=str(tmp_path / "rounded"), dtype="float64")
    reference = info(replace(run.settings, model=exact), tmp_path)
    recorder = DocumentGradients()
    recorder.start(run)
    assert error(recorder.products().numpy(), by_autograd(reference)) < 2e-2
    right = DocumentGradients._normalized
    monkeypatch.setattr(DocumentGradients, "_normalized", lambda *args: 1.05 * right(*args))
    with pytest.raises(RuntimeError, match=r"ln.*the factors give .* where autograd gives"):
        recorder.products()


def test_bfloat16_of_many_positions(tmp_path: Path) -> None:
    """In as many, what autograd sums up in bfloat16 is no measure of a LayerNorm's gradient."""
    many = {"tokens": 256, "min_tokens": 2, "count": 25, "held_out": 0}
    run = loaded("gpt_neox", tmp_path / "model", dtype="bfloat16", documents=many, eval_batch=32)
    recorder = DocumentGradients()
    recorder.start(run)
    recorder.products()


def test_its_cost_is_said_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rp.fit(tiny(recorders=["document_gradients"], epochs=1), tmp_path / "run")
    (line,) = (t for t in capsys.readouterr().err.splitlines() if t.startswith("record document"))
    assert " s at each of 2 episodes" in line
