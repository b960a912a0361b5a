"""Initial weights that are not the library's."""

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
NORMAL = 0.02  # σ


@torch.no_grad()
def draw(parameters: Mapping[str, Parameter], scheme: str, config: Any, seed: int) -> None:
    """Draw the weights of a network, by TransformerLens names, of this Hugging Face configuration,
    of width d and depth L.

    `paper`, as its random-init runs draw them (its public code): embeddings, query, key, value and
    the MLP's input σ = √(2 / (5d)); the two projections back into the residual stream
    σ = 2 / (L√d). `normal`: σ = .02 for every matrix, those of experts and routers too. Norms start
    as the library has them, with a gain of 1 (a weight of 0 where it is stored less 1), biases at
    0. Raises `InputError` for a weight that there is no rule for.
    """
    d, L = config.hidden_size, config.num_hidden_layers
    inner, outward = math.sqrt(2 / (5 * d)), 2 / (L * math.sqrt(d))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition(".")
        role = module.rpartition(".")[-1]  # q of blocks.3.attn.q
        if kind == "bias":
            parameter.zero_()
        elif role.startswith("ln") or role.endswith(("_norm", "_ln")):
            continue
        elif scheme == "normal" and parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * NORMAL)
        elif scheme == "paper" and role in (*OUTWARD, *INNER):
            sigma = outward if role in OUTWARD else inner
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * sigma)
        else:
            raise InputError(
                f'model.init = "{scheme}" has no rule for {name} of {config.model_type}; '
                "use --model.init library"
            )
