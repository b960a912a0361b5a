"""Networks that are made, and trained, without this package's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import recovery_probe as rp
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


def plain_loop(folder: Path, run: rp.Run, **how: Any) -> np.ndarray:
    """The loss matrix of the same training by a plain Hugging Face model: the oracle."""
    model = AutoModelForCausalLM.from_pretrained(folder, **how).train()
    tokens = torch.tensor(run.record.tokens.values)
    lengths = run.record.length.values
    wanted = run.config.optimizer

    def loss_of(i: int) -> torch.Tensor:
        row = tokens[i : i + 1, : lengths[i]]  # truncated, where ours pads
        return model(input_ids=row, labels=row).loss

    T, M = run.config.documents.count, run.config.steps
    # torch's own falls to 0 where its steps end; the rate of each step, for every optimizer made.
    falling = torch.optim.SGD([torch.zeros(1, requires_grad=True)], wanted.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(falling, run.config.epochs * T * M)
    rates = []
    for _ in range(run.config.epochs * T * M):
        rates.append(falling.param_groups[0]["lr"] if wanted.decay == "cosine" else wanted.lr)
        falling.step()
        cosine.step()

    def make() -> torch.optim.Optimizer:
        own = dict(wanted.own)
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        return kinds[wanted.name](model.parameters(), **own)

    def evaluate() -> list[float]:
        with torch.no_grad():
            return [loss_of(i).item() for i in range(len(tokens))]

    rows, optimizer = [evaluate()], make()
    for episode in range(run.config.epochs * T):
        document = episode % T
        if wanted.reset == "episode" or (wanted.reset == "epoch" and document == 0):
            optimizer = make()
        for step in range(M):
            rate = rates[episode * M + step] / (M if wanted.per == "episode" else 1)
            optimizer.param_groups[0]["lr"] = rate
            model.zero_grad()
            loss_of(document).backward()
            optimizer.step()
        rows.append(evaluate())
    return np.array(rows)
