"""Small runs, and what interventions do to them done by hand in a plain Hugging Face loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe.record.folder import checkpoint_folder

SMALL = {"epochs": 2, "recorders": ["checkpoints"], "documents": {"count": 3, "held_out": 1}}
MOMENTUM = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
# A parameter's TransformerLens and Hugging Face names.
IN, OUT = "blocks.0.mlp.in.weight", "blocks.1.attn.o.bias"
HF = {
    IN: "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
    OUT: "gpt_neox.layers.1.attention.dense.bias",
}


def same(*_: Any) -> Any:
    return None


def plain_losses(
    run: rp.Run,
    *,
    prepare: Callable[[Any], Any] = same,
    shown: Callable[[torch.Tensor, int], torch.Tensor] = lambda ids, step: ids,
    gradients: Callable[[Any], Any] = same,
    before: Callable[[Any], Any] = same,
    after: Callable[[Any], Any] = same,
) -> np.ndarray:
    """The loss matrix of a run's training from its first checkpoint on, by a plain model. What an
    intervention does is done by hand, with the model's own parts and names."""
    folder = checkpoint_folder(run.path, 0)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    prepare(model)
    wanted, tokens = run.config.optimizer, torch.tensor(run.record.tokens.values)
    options = {"lr": wanted.lr, "weight_decay": wanted.weight_decay}
    if wanted.name == "sgd":
        kind: Any = torch.optim.SGD
        options["momentum"] = wanted.momentum
    else:
        kind = torch.optim.AdamW
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **options)

    def loss_of(given: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=given[None]).logits[0]
        return F.cross_entropy(logits[:-1], target[1:])

    def evaluate() -> list[float]:
        model.eval()
        with torch.no_grad():
            losses = [loss_of(ids, ids).item() for ids in tokens]
        model.train()
        return losses

    rows, step = [evaluate()], 0
    for document in run.schedule.values:
        for _ in range(run.config.steps):
            model.zero_grad()
            loss_of(shown(tokens[document], step), tokens[document]).backward()
            gradients(model)
            before(model)
            optimizer.step()
            after(model)
            step += 1
        rows.append(evaluate())
    return np.array(rows)


def directions() -> dict[str, torch.Tensor]:
    """Three, neither orthogonal nor of unit length, over two parameters."""
    source = torch.Generator().manual_seed(3)
    return {
        IN: torch.randn(3, 128, 32, generator=source) + 0.3,
        OUT: torch.randn(3, 32, generator=source),
    }


def half(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return tensor * 0.5
