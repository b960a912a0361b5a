"""What logits say of documents: their loss, and what is left of it where the temperature of the
logits, or a bias over the vocabulary, is free; how far up the right token stands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from einops import reduce
from scipy.optimize.elementwise import find_root
from torch import Tensor

from recovery_probe.models import text
from recovery_probe.models.text import Inputs
from recovery_probe.stats import Floats, Ints

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


@dataclass
class Positions:
    """The positions of a batch of documents whose next token is known."""

    z: Tensor  # (position, vocabulary): their logits
    right: Tensor  # (position,): the next token
    owner: Tensor  # (position,): the document, from 0
    documents: int

    @classmethod
    def of(cls, logits: Tensor, inputs: Inputs) -> Positions:
        target = text.targets(inputs)
        known = target != text.IGNORED
        owner = known.nonzero()[:, 0]
        z = logits[known].to(torch.promote_types(logits.dtype, torch.float32))
        return cls(z, target[known], owner, len(logits))

    def means(self, each: Tensor) -> Tensor:
        """(documents,), float64, of (position,)."""
        zeros = each.new_zeros(self.documents, dtype=torch.float64)
        total = zeros.index_add(0, self.owner, each.double())
        return total / zeros.index_add(0, self.owner, torch.ones_like(each).double())

    def losses(self, z: Tensor) -> Tensor:
        """(documents,): mean cross-entropy of (position, vocabulary) logits, nats."""
        return self.means(z.logsumexp(-1) - z.gather(-1, self.right[:, None])[:, 0])

    def best(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(documents,) each: the mean cross-entropy at the temperature at which it is least, and
        the inverse of that temperature. The loss is convex in it, so that its slope turns once."""
        own = z.gather(-1, self.right[:, None])[:, 0]

        def slope(log_beta: Floats, documents: Ints) -> Floats:
            """(document,), of those that are still looked for."""
            beta = z.new_zeros(self.documents)
            beta[documents] = torch.from_numpy(log_beta).to(z).exp()
            beta = beta[self.owner]
            these = beta > 0
            logits, each = z[these], torch.zeros_like(own)
            p = (logits * beta[these, None]).softmax(-1)
            each[these] = torch.linalg.vecdot(p, logits) - own[these]
            return self.means(each)[documents].cpu().numpy()

        found = find_root(
            slope,
            (-log(RANGE), log(RANGE)),
            args=(np.arange(self.documents),),
            tolerances={"xatol": 1e-5, "xrtol": 0, "fatol": 0, "frtol": 0},
        )
        # Where the slope does not turn, the loss is least at an end.
        ends = np.where(found.f_bracket[1] < 0, log(RANGE), -log(RANGE))
        at = np.where(found.success, found.x, ends)
        beta = torch.from_numpy(at).to(z).exp()
        return self.losses(z * beta[self.owner][:, None]), beta


@torch.no_grad()
def of_documents(
    batches: Callable[[], Iterable[tuple[Tensor, Inputs]]], classes: Classes, ridge: float
) -> dict[str, Tensor]:
    """(documents,) each, of batches of logits (documents, C, vocabulary) and their inputs, which
    are asked for twice: the mean over a document's tokens of

    `loss`      their cross-entropy, nats
    `tempered`  the same at the document's own best temperature: min over τ of CE(z/τ)
    `biased`    the same with the bias b over the vocabulary that is best for all other documents
    `both`      with that bias, at the document's own best temperature: min over τ of CE((z+b)/τ)
    `log_rank`  the logarithm of how many tokens are at least as likely as the right one
    `accuracy`  whether it is the likeliest

    and `temperature`, τ. One batch's logits exist at a time, and a float for each position and
    known token: N·(K + 1) for N positions.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    log_p, places, owners, count = [], [], [], 0
    for logits, inputs in batches():
        at = Positions.of(logits, inputs)
        rank = (at.z >= at.z.gather(-1, at.right[:, None])).sum(-1)
        tempered, beta = at.best(at.z)
        found["loss"].append(at.losses(at.z))
        found["tempered"].append(tempered)
        found["temperature"].append(1 / beta.double())
        found["log_rank"].append(at.means(rank.double().log()))
        found["accuracy"].append(at.means((rank == 1).double()))
        log_p.append(classes.log_probabilities(at.z))
        places.append(classes.places(at.right))
        owners.append(at.owner + count)
        count += at.documents
    biases = best_biases(torch.cat(log_p), torch.cat(places), torch.cat(owners), ridge)
    log_p.clear()
    count = 0
    for logits, inputs in batches():
        at = Positions.of(logits, inputs)
        own = biases[:, count : count + at.documents]  # (class, document)
        whole = own[-1:].repeat(at.z.shape[1], 1).index_copy(0, classes.known, own[:-1])
        z = at.z + whole.T[at.owner]
        found["biased"].append(at.losses(z))
        found["both"].append(at.best(z)[0])
        count += at.documents
    return {name: torch.cat(found[name]) for name in NAMES}


def best_biases(log_p: Tensor, right: Tensor, owner: Tensor, ridge: float) -> Tensor:
    """(class, document): the bias that is best for all documents but that one, of (position, class)
    log-probabilities, the place of the right class, and the `owner` document of each position. All
    at once: over the others' positions Σ CE + ridge/2 |bias|² is least, so that a `ridge` of 1 is a
    prior of one nat. With P the probabilities and e the exponential of the biases, what they sum to
    is Pe and the gradient is e ∘ Pᵀ(1/Pe): two products an iteration, and no exponential of the
    size of P."""
    documents, classes = int(owner.max()) + 1, log_p.shape[1]
    P = log_p.exp()
    one = torch.nn.functional.one_hot(owner, documents).to(P)  # (position, document)
    others = 1 - one
    counts = P.new_zeros(classes, documents).index_add(0, right, others)  # of the right class
    number = reduce(others, "position document -> document", "sum")

    def objective(bias: Tensor) -> tuple[Tensor, Tensor]:
        """Nats per token, summed over documents, and its gradient, (class, document)."""
        e = bias.exp()
        total = P @ e  # (position, document)
        fit = reduce(total.log() * others, "position document -> document", "sum")
        fit = fit - reduce(counts * bias, "token document -> document", "sum")
        prior = ridge / 2 * reduce(bias**2, "token document -> document", "sum")
        gradient = e * (P.T @ (others / total)) - counts + ridge * bias
        return ((fit + prior) / number).sum(), gradient / number

    return _least(objective, torch.zeros_like(counts))


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
