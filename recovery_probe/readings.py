"""What logits say of documents: their loss, and what is left of it where the temperature of the
logits, or a bias over the vocabulary, is free; how far up the right token stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from recovery_probe.models import text
from recovery_probe.models.text import Inputs

RANGE = 20.0  # a temperature is between 1 / RANGE and RANGE
NAMES = ("loss", "tempered", "biased", "both", "log_rank", "accuracy", "temperature")


@dataclass
class Classes:
    """The tokens that are to be predicted somewhere, and all others as one: what a bias over the
    vocabulary can be fitted to. A document never uses most of a vocabulary, and gives every token
    that none uses the same gradient but for its probability."""

    known: Tensor  # (K,) tokens, in order

    @classmethod
    def of(cls, inputs: Inputs) -> Classes:
        target = text.targets(inputs)
        return cls(target[target != text.IGNORED].unique())

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """(…, K + 1): of each known token, and of all others together."""
        others = logits.index_fill(-1, self.known, -torch.inf).logsumexp(-1, keepdim=True)
        both = torch.cat([logits[..., self.known], others], dim=-1)
        return both - logits.logsumexp(-1, keepdim=True)

    def places(self, tokens: Tensor) -> Tensor:
        return torch.searchsorted(self.known, tokens)


@torch.no_grad()
def of_documents(
    batches: Iterable[tuple[Tensor, Inputs]], classes: Classes, ridge: float
) -> dict[str, Tensor]:
    """(documents,) each, of batches of logits (documents, C, vocabulary) and their inputs: the mean
    over a document's tokens of

    `loss`      their cross-entropy, nats
    `tempered`  the same at the document's own best temperature: min over τ of CE(z/τ)
    `biased`    the same with the bias over the vocabulary that is best for all other documents
    `both`      the same at the best temperature, with a bias fitted at these
    `log_rank`  the logarithm of how many tokens are at least as likely as the right one
    `accuracy`  whether it is the likeliest

    and `temperature`, τ. One batch's logits exist at a time, then a float for each position and
    known token: twice N·(K + 1) for N positions.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    log_p: dict[str, list[Tensor]] = {"biased": [], "both": []}
    places, owners, count = [], [], 0
    for logits, inputs in batches:
        target = text.targets(inputs)
        known = target != text.IGNORED
        lengths = known.sum(-1)
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        owner = rearrange(torch.arange(len(z), device=z.device), "document -> document 1")
        owner = owner.expand_as(known)[known]
        z, right = z[known], target[known]  # (position, vocabulary), (position,)

        def means(each: Tensor, owner: Tensor = owner, lengths: Tensor = lengths) -> Tensor:
            """(documents,)"""
            total = each.new_zeros(len(lengths), dtype=torch.float64)
            return total.index_add(0, owner, each.double()) / lengths

        own = z.gather(-1, right[:, None])  # of the right token
        rank = (z >= own).sum(-1)
        beta = inverse_temperature(z, own[:, 0], owner, means)
        tempered = z * beta[owner][:, None]
        found["loss"].append(means(z.logsumexp(-1) - own[:, 0]))
        found["tempered"].append(means(tempered.logsumexp(-1) - own[:, 0] * beta[owner]))
        found["temperature"].append(1 / beta.double())
        found["log_rank"].append(means(rank.to(z.dtype).log()))
        found["accuracy"].append(means((rank == 1).to(z.dtype)))
        log_p["biased"].append(classes.log_probabilities(z))
        log_p["both"].append(classes.log_probabilities(tempered))
        places.append(classes.places(right))
        owners.append(owner + count)
        count += len(lengths)
    for name, each in log_p.items():
        found[name] = [biased(torch.cat(each), torch.cat(places), torch.cat(owners), ridge)]
        each.clear()
    return {name: torch.cat(found[name]) for name in NAMES}


def inverse_temperature(
    z: Tensor, own: Tensor, owner: Tensor, means: Callable[[Tensor], Tensor]
) -> Tensor:
    """(documents,): β = 1/τ at which the mean of logsumexp(βz) - βz of the right token is least,
    of (position, vocabulary) logits and those of the right token, `owner` the document of each. The
    loss is convex in β: Newton's steps, inside a bracket that closes on where the slope turns."""
    beta = torch.ones_like(means(own), dtype=z.dtype)
    low, high = torch.full_like(beta, 1 / RANGE), torch.full_like(beta, RANGE)
    for _ in range(30):
        p = (z * beta[owner][:, None]).softmax(-1)
        mean = einsum(p, z, "position token, position token -> position")
        square = einsum(p, z - mean[:, None], z - mean[:, None], "n token, n token, n token -> n")
        slope, curvature = means(mean - own).to(z.dtype), means(square).to(z.dtype)
        low, high = beta.where(slope < 0, low), beta.where(slope >= 0, high)
        step = beta - slope / curvature.clamp_min(1e-12)
        inside = (step > low) & (step < high)
        new = step.where(inside, (low * high).sqrt())
        still = ((new - beta).abs() > 1e-4 * beta).any()
        beta = new
        if not still:
            break
    return beta


def biased(log_p: Tensor, right: Tensor, owner: Tensor, ridge: float) -> Tensor:
    """(documents,): the mean loss of each under the bias that is best for all others, of (position,
    class) log-probabilities, the place of the right class, and the `owner` document of each
    position. One bias for each document that is left out, all at once: over the others' positions
    Σ CE + ridge/2 |bias|² is least, so that a `ridge` of 1 is a prior of one nat. With P the
    probabilities and e the exponential of the biases, what they sum to is Pe and the gradient is
    e ∘ Pᵀ(1/Pe): two products an iteration, and no exponential of the size of P."""
    documents, classes = int(owner.max()) + 1, log_p.shape[1]
    P = log_p.exp()
    one = torch.nn.functional.one_hot(owner, documents).to(P)  # (position, document)
    others = 1 - one
    counts = P.new_zeros(classes, documents).index_add(0, right, others)  # of the right class
    number = reduce(others, "position document -> document", "sum")
    bias = torch.zeros_like(counts)

    def objective(bias: Tensor) -> tuple[Tensor, Tensor]:
        """Nats per token, summed over documents, and its gradient, (class, document)."""
        e = bias.exp()
        total = P @ e  # (position, document)
        fit = reduce(total.log() * others, "position document -> document", "sum")
        fit = fit - reduce(counts * bias, "token document -> document", "sum")
        prior = ridge / 2 * reduce(bias**2, "token document -> document", "sum")
        gradient = e * (P.T @ (others / total)) - counts + ridge * bias
        return ((fit + prior) / number).sum(), gradient / number

    bias = _least(objective, bias)
    total = P @ bias.exp()
    own = (total.log() - bias[right] - log_p.gather(1, right[:, None])) * one
    return reduce(own.double(), "position document -> document", "sum") / one.sum(0)


def _least(objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor) -> Tensor:
    """Where a smooth convex function is least."""
    at = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [at],
        max_iter=60,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        with torch.no_grad():
            value, at.grad = objective(at)
        return value

    search.step(closure)
    return at.detach()
