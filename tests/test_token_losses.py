"""The loss of every token, against a plain Hugging Face model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import tiny
from networks import local_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import recovery_probe as rp


def test_they_are_a_plain_models(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    settings = tiny(
        epochs=1,
        steps=1,
        model={"source": str(folder)},
        documents={"tokens": 200, "min_tokens": 2, "count": 4},
        eval_batch=3,
        recorders=["token_losses", "checkpoints"],
    )
    run = rp.fit(settings, tmp_path / "run")
    found = run.recorder("token_losses").load()
    assert found.loss.dims == ("episodes_done", "document", "position")
    tokens, lengths = torch.tensor(run.record.tokens.values), run.record.length.values
    assert (lengths < 200).any()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for done in (0, 4):
        weights = folder if done == 0 else run.path / "checkpoints" / f"episodes-{done:05d}"
        plain = AutoModelForCausalLM.from_pretrained(weights).eval()
        for document, length in enumerate(lengths.tolist()):
            row = tokens[document, :length]
            with torch.no_grad():
                logits = plain(row[None]).logits[0, :-1]
            expected = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none").numpy()
            loss = found.loss.values[done, document].astype("float32")
            np.testing.assert_allclose(loss[1:length], expected, rtol=2**-11, atol=1e-4)
            assert np.isnan(loss[0])
            assert np.isnan(loss[length:]).all()
            shown = found.token.values[document]
            assert list(shown[:length]) == tokenizer.convert_ids_to_tokens(row.tolist())
            assert (shown[length:] == "").all()


def test_their_means_are_the_losses(pair: rp.Run) -> None:
    loss = pair.recorder("token_losses").loss.astype("float64")
    np.testing.assert_allclose(loss.mean("position"), pair.losses, rtol=2**-11)
