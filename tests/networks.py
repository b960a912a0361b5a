"""Networks that are made, and trained, without this package's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recovery_probe.models import train_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 64},
    "llama": {"intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def local_model(folder: Path, architecture: str, shape: dict[str, Any] | None = None) -> Path:
    """A folder with a small Hugging Face model, the same every time. `shape`: what its
    configuration says beside the sizes; of `SHAPES` when not given."""
    config = AutoConfig.for_model(
        architecture,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        initializer_range=0.1,
        **(SHAPES[architecture] if shape is None else shape),
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(512).save_pretrained(folder)
    return folder
