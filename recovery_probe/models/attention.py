"""Attention by Hugging Face's own module, where TransformerLens would compute it step by step.

For its hook points inside, TransformerLens works out scores and pattern itself. An attention that
has neither, PyTorch's fused one, is left to Hugging Face, whose modules call the linear maps to
queries, keys, values and output by their wrappers: `hook_q`, `hook_k`, `hook_v` and `hook_z` fire,
as do `hook_in` and `hook_out` of the whole.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from recovery_probe.models.bridge import joint_attentions, output_places


def leave_to_hugging_face(bridge: Any) -> None:
    """Let every attention of a bridge call what it wraps, and not more."""
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    joint = joint_attentions(bridge)
    for attention in list(bridge.original_model.modules()):
        if not isinstance(attention, AttentionBridge):
            continue
        # Set past the bridge, which hands the attributes of what it wraps on to it.
        object.__setattr__(attention, "forward", MethodType(AttentionBridge.forward, attention))
        own = attention.original_component._modules
        wrappers = {id(getattr(c, "original_component", None)): c for c in attention.children()}
        for name, child in own.items():
            own[name] = wrappers.get(id(child), child)  # GPT-2's output map stands there bare
            if attention in joint and own[name] is attention.qkv:
                own[name] = Joint(attention)


class Joint(nn.Module):
    """What a joint query-key-value map gives, by the split maps that are trained. Outputs move in
    runs (a head's queries, then its keys), which costs as little on the way back."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = attention.q, attention.k, attention.v
        stale = attention.qkv.original_component
        self.weight, self.bias = stale.weight, stale.bias  # for whoever asks how they are split
        self.sizes: list[list[int]] = []  # of the runs of each part
        starts = []  # where each run stands among the joint outputs
        for own in output_places(attention):
            begins = torch.cat([torch.tensor([True]), own.diff() != 1]).nonzero()[:, 0]
            ends = torch.cat([begins[1:], torch.tensor([len(own)])])
            self.sizes.append((ends - begins).tolist())
            starts.append(own[begins])
        self.order = torch.cat(starts).argsort().tolist()

    def forward(self, x: Tensor) -> Tensor:
        """(document, position, joint outputs) of (document, position, width)."""
        runs = [
            run
            for part, sizes in zip((self.q, self.k, self.v), self.sizes, strict=True)
            for run in part(x).split(sizes, dim=-1)
        ]
        return torch.cat([runs[i] for i in self.order], dim=-1)
