"""The paper's initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from recovery_probe.errors import InputError

# TransformerLens names of the matrices that write to the residual stream, and of the others.
OUTWARD = ("o", "out", "fc2")
INNER = ("embed", "pos_embed", "unembed", "q", "k", "v", "in", "gate", "fc1")


@torch.no_grad()
def as_paper(parameters: Mapping[str, Parameter], config: Any, seed: int) -> None:
    """Weights as the paper's random-init runs draw them (its public code), of a network with this
    Hugging Face configuration, of width d and depth L.

    Embeddings, query, key, value and the MLP's input: σ = √(2 / (5d)); the two projections
    back into the residual stream: σ = 2 / (L√d). Norms start as the library has them, with a
    gain of 1 (a weight of 0 where it is stored less 1), biases at 0.
    """
    inner = math.sqrt(2 / (5 * config.hidden_size))
    outward = 2 / (config.num_hidden_layers * math.sqrt(config.hidden_size))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition(".")
        role = module.rpartition(".")[-1]  # q of blocks.3.attn.q
        if kind == "bias":
            parameter.zero_()
        elif role.startswith("ln") or role.endswith(("_norm", "_ln")):
            continue
        elif role in OUTWARD:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * outward)
        elif role in INNER:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * inner)
        else:
            raise InputError(
                f'model.init = "paper" has no rule for {name} of {config.model_type}; '
                "use --model.init library"
            )
