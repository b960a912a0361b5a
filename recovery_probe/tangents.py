"""Derivatives of a network's outputs along a direction in its weights, forward mode: one pass, and
no Jacobian."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import einsum, reduce
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from recovery_probe.models import Model, text
from recovery_probe.models.text import Inputs

Weights = Mapping[str, Tensor]  # TransformerLens name -> tensor, as `Model.parameters` has them


@torch.no_grad()
def along(
    model: Model, tangent: Weights, inputs: Inputs, weights: Weights | None = None
) -> tuple[Tensor, Tensor]:
    """(documents, C, vocabulary) each: logits, and their derivative J·v along a `tangent` v, whose
    missing names stand for 0; at `weights`, the model's own where not given. In the mode the model
    is in. A pass of two to three times a forward pass's time and memory; nothing is kept for a
    backward one."""
    at = dict(weights or model.parameters)
    # What PyTorch calls efficient attention knows no forward mode.
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        for name, direction in tangent.items():
            at[name] = forward_ad.make_dual(at[name].detach(), direction)
        with model.with_weights(at):
            logits, derivative = forward_ad.unpack_dual(model.logits(inputs))
    return logits, torch.zeros_like(logits) if derivative is None else derivative


def expansion(logits: Tensor, derivative: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(documents,) each, nats: of a document's mean loss l, what `along` gives for a step v in the
    weights: gᵀv, its first-order change, and vᵀGv with the Gauss-Newton matrix G, the mean over
    positions of Jᵀ(diag(p) - ppᵀ)J, p the softmax of the logits: the variance of J·v under p. So l
    is expanded as l + gᵀv + ½ vᵀGv, exactly where logits are linear and the loss is quadratic."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    target = text.targets(inputs)
    known = target != text.IGNORED
    p, moved = logits.to(wide).softmax(-1), derivative.to(wide)
    mean = einsum(p, moved, "document position token, document position token -> document position")
    around = (moved - mean[..., None]) ** 2
    variance = einsum(
        p, around, "document position token, document position token -> document position"
    )
    right = moved.gather(-1, target.where(known, 0)[..., None])[..., 0]

    def averaged(each: Tensor) -> Tensor:
        total = reduce(each.where(known, 0).double(), "document position -> document", "sum")
        return total / known.sum(-1)

    return averaged(mean - right), averaged(variance)


def moved_loss(logits: Tensor, derivative: Tensor, inputs: Inputs) -> Tensor:
    """(documents,), nats: how a document's mean loss changes where its logits move by a
    `derivative`: that of a network that is linear in its weights."""
    each = (text.token_losses(z, inputs) for z in (logits + derivative, logits))
    there, here = (text.means(losses, inputs).double() for losses in each)
    return there - here
