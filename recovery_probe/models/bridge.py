"""What TransformerLens makes of a Hugging Face model, and the way back.

The bridge gives every weight its TransformerLens name and every activation a hook point. It also
keeps the weights under their Hugging Face names, and for architectures with one joint
query-key-value matrix it computes with a split copy: here stands which tensor is which.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import pack, rearrange
from torch import Tensor, nn
from torch.nn import Parameter

from recovery_probe.errors import InputError
from recovery_probe.models import text
from recovery_probe.models.text import Inputs


def live_parameters(bridge: Any, inputs: Inputs) -> dict[str, Parameter]:
    """TransformerLens name -> parameter, for those the loss depends on, each counted once.

    The bridge reaches a weight by several paths (its Hugging Face one, with wrapper modules
    between, and its own, the shortest), and keeps joint matrices it no longer reads: a tiny
    backward pass tells which are live. The others are frozen, so that nothing decays them.
    """
    with torch.enable_grad():
        text.logits(bridge, inputs).float().pow(2).mean().backward()
    shortest: dict[int, str] = {}
    found: dict[int, Parameter] = {}
    for path, parameter in nn.Module.named_parameters(bridge, remove_duplicate=False):
        if parameter.grad is None:
            parameter.requires_grad_(False)
            continue
        name = path.replace("_original_component.", "")
        if len(name) < len(shortest.get(id(parameter), name + " ")):
            shortest[id(parameter)] = name
            found[id(parameter)] = parameter
            # Split weights are views with gaps. A fused optimizer step reads a gradient as if
            # it were laid out like its weight, and updates such a view wrongly, in silence.
            parameter.data = parameter.data.contiguous()
    bridge.zero_grad(set_to_none=True)
    return {shortest[key]: parameter for key, parameter in found.items()}


def joint_attentions(bridge: Any) -> list[Any]:
    """The attentions that compute with a split copy of one query-key-value matrix."""
    attentions = [getattr(block, "attn", None) for block in bridge.blocks]
    return [a for a in attentions if hasattr(a, "split_qkv_matrix") and hasattr(a, "qkv")]


def split_parts(attention: Any) -> tuple[nn.Linear, ...]:
    """The linear maps to queries, keys and values that stand for a joint one."""
    return tuple(part.original_component for part in (attention.q, attention.k, attention.v))


def rejoined(bridge: Any) -> dict[int, Tensor]:
    """id of a stale joint weight or bias -> what it would be by its split parts."""
    joined: dict[int, Tensor] = {}
    places: dict[Any, Tensor] = {}  # blocks of the same shapes split alike
    for attention in joint_attentions(bridge):
        for kind in ("weight", "bias"):
            joint = getattr(attention.qkv.original_component, kind, None)
            if joint is None:
                continue
            parts = [getattr(part, kind).detach() for part in split_parts(attention)]
            shapes = (kind, *(part.shape for part in parts))
            if shapes not in places:
                places[shapes] = _places(attention, kind)
            whole = torch.empty_like(joint.data)
            whole.view(-1)[places[shapes]], _ = pack(parts, "*")
            joined[id(joint)] = whole
    return joined


def output_places(attention: Any) -> tuple[Tensor, ...]:
    """Where the outputs of q, of k and of v stand among those of the joint map."""
    parts = split_parts(attention)
    whole = _places(attention, "weight").cpu()
    first = rearrange(whole, "(output input) -> output input", input=parts[0].in_features)[:, 0]
    # Row and column in the joint weight: one is the output, the other is input 0.
    shape = attention.qkv.original_component.weight.shape
    places = torch.stack(torch.unravel_index(first, shape)).sum(0)
    return places.split([part.out_features for part in parts])


def _places(attention: Any, kind: str) -> Tensor:
    """Where each entry of the split q, k and v, one after the other, stands in the joint
    query-key-value `kind` (weight or bias), flattened.

    How rows interleave differs between architectures. The bridge's own split is asked: it
    moves entries without changing them, so splitting the numbers 0, 1, 2, … tells.
    """
    joint: Parameter = getattr(attention.qkv.original_component, kind)
    stale = joint.data
    try:
        joint.data = torch.arange(stale.numel(), dtype=torch.float64).view(stale.shape)
        parts = attention.split_qkv_matrix(attention.original_component)
    finally:
        joint.data = stale
    places = pack([getattr(part, kind).detach() for part in parts], "*")[0].long()
    filled = torch.zeros(stale.numel(), dtype=torch.bool)
    filled[places] = True
    if len(places) != stale.numel() or not filled.all():
        raise InputError(f"{attention.name}: q, k and v do not make up the joint {kind}")
    return places.to(stale.device)
