"""Text: documents as named inputs with a leading `document` axis, and their losses.

`tokens` (documents, C), int64, and `mask` (documents, C), bool: True where there is a token. The
padding is on the right of a causal model's text, so that no real position sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

Inputs = Mapping[str, Tensor]
IGNORED = -100  # target of a position that no token follows


def probe(positions: int, device: torch.device) -> Inputs:
    """A document to try a network with: the first tokens of any vocabulary."""
    tokens = torch.arange(positions, device=device)[None]
    return {"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}


def twins(inputs: Inputs) -> tuple[Inputs, int]:
    """A document beside one that has other tokens in its second half; and where that starts."""
    tokens = inputs["tokens"]
    half = tokens.shape[1] // 2
    changed = torch.cat([tokens[:, :half], tokens[:, half:].flip(1) + 1], dim=1)
    return {"tokens": torch.cat([tokens, changed]), "mask": inputs["mask"].repeat(2, 1)}, half


def logits(network: Any, inputs: Inputs) -> Tensor:
    """(documents, C, vocabulary): what a Hugging Face model or its bridge expects after each
    position, in its own number format."""
    output = network(inputs["tokens"], use_cache=False)
    return getattr(output, "logits", output)


def targets(inputs: Inputs) -> Tensor:
    """(documents, C): the token after each position, which its logits are about; `IGNORED` where
    none follows."""
    own = inputs["tokens"].where(inputs["mask"], IGNORED)
    own[:, 0] = IGNORED
    return own.roll(-1, dims=1)


def token_losses(logits: Tensor, inputs: Inputs) -> Tensor:
    """(documents, C): cross-entropy of the token at each position given those before it, nats, in
    float32 at least; 0 at position 0 and where there is no token."""
    following = targets(inputs)
    each = F.cross_entropy(
        rearrange(logits, "document position token -> (document position) token").to(
            torch.promote_types(logits.dtype, torch.float32)
        ),
        rearrange(following, "document position -> (document position)"),
        ignore_index=IGNORED,
        reduction="none",
    )
    return each.view(following.shape).roll(1, dims=1)


def means(token_losses: Tensor, inputs: Inputs) -> Tensor:
    """(documents,): the mean of `token_losses` over a document's tokens but the first, nats."""
    count = reduce(inputs["mask"][:, 1:], "document position -> document", "sum")
    # Summed from position 1 on, as any plain loop does: in another order the last bit differs.
    return reduce(token_losses.roll(-1, dims=1), "document position -> document", "sum") / count
