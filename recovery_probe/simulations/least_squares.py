"""Linear equations fitted by plain descent, one document of them after the other: exact, without
any vector of the weights' size."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from einops import einsum, rearrange, reduce

from recovery_probe.record.layout import EPISODE, STEP, Array, module_coords
from recovery_probe.simulations import Drawn, Order, Recorded
from recovery_probe.simulations import modules as halves
from recovery_probe.stats import Floats

LAST = 2  # epochs whose loss changes are allocated


@dataclass
class LeastSquares:
    """Documents of q equations X_k w = y_k each, in d weights. The loss of a document is the mean
    over its equations of half the squared error; its gradient is Xₖᵀ(X_k w - y_k) / q.

    A step on k changes the errors of all documents by -lr/q · (X Xₖᵀ) e_k, so that the products of
    the equations are all that training needs to know.
    """

    X: Floats  # (T + H, q, d): the coefficients
    y: Floats  # (T + H, q)
    start: Floats  # (d,): the weights before training
    trained: int  # T
    lr: float
    steps: int  # M

    def __post_init__(self) -> None:
        self.q = self.X.shape[1]
        half = self.X.shape[2] // 2
        parts = [
            rearrange(X, "document equation d -> (document equation) d")
            for X in (self.X[..., :half], self.X[..., half:])
        ]
        documents = len(self.X)
        # (module, document, equation, other document, its equation)
        self.products = np.stack(
            [(X @ X.T).reshape(documents, self.q, documents, self.q) for X in parts]
        )
        self.together = self.products.sum(axis=0)
        # (document, equation, module, coordinate): of what is trained on, in an orthonormal basis
        # of what that spans in each half.
        trained = [X[: self.trained * self.q].T for X in parts]
        bases = [np.asarray(np.linalg.qr(X, mode="r")).T for X in trained]
        size = max(basis.shape[1] for basis in bases)
        padded = [np.pad(basis, ((0, 0), (0, size - basis.shape[1]))) for basis in bases]
        self.coordinates = np.stack(padded, axis=1).reshape(self.trained, self.q, 2, size)

    def descend(self, order: Order) -> Drawn:
        """M steps on each document of an order. Where it diverges, losses are not finite."""
        error = self.X @ self.start - self.y  # (document, equation)
        allocated = np.empty((len(order), 2, len(self.X)))  # (episode, module, document)
        errors, train = [error], np.empty((len(order), self.steps, self.q))
        summed = np.empty((len(order), self.q))  # over the steps of an episode: it moves by these
        with np.errstate(over="ignore", invalid="ignore"):
            for episode, k in enumerate(order):
                own, towards = error[k], self.together[k, :, k] * (self.lr / self.q)
                for m in range(self.steps):
                    train[episode, m] = own
                    own = own - towards @ own
                summed[episode] = train[episode].sum(axis=0)
                moved = self.together[:, :, k] @ summed[episode]
                before, error = error, error - self.lr / self.q * moved
                # The loss is quadratic: its gradient half-way is that of the whole line.
                halves_moved = self.products[:, :, :, k] @ summed[episode]
                half_way = (before + error) / 2
                allocated[episode] = -self.lr / self.q * (halves_moved * half_way).mean(axis=2)
                errors.append(error)
            each = np.stack(errors)  # (row, document, equation)
            token_losses, first = each**2 / 2, train[:, 0]
            moves = -self.lr * self._gradients(order, summed)
            losses = token_losses.mean(axis=2)
            return Drawn(
                order,
                losses,
                (train**2 / 2).mean(axis=2).ravel(),
                {
                    "weight_deltas": halves.of_updates(moves),
                    "gradients": halves.of_gradients(self._gradients(order, first)),
                    "document_gradients": self._inner(each[:: self.trained]),
                    "allocation": _allocated(allocated, losses, self.trained),
                    "token_losses": _token_losses(token_losses),
                    "state_return": self._state_return(order, each, moves),
                    "residual_stream": _outputs(each[:, 0] + self.y[0], first + self.y[order]),
                },
            )

    def _gradients(self, order: Order, errors: Floats) -> Floats:
        """(episode, module, coordinate): of (episode, equation) errors of the documents trained
        on."""
        coordinates = rearrange(
            self.coordinates, "document equation module c -> document equation (module c)"
        )
        rows = [e @ coordinates[k] / self.q for k, e in zip(order, errors, strict=True)]
        return np.stack(rows).reshape(len(order), 2, -1)

    def _state_return(self, order: Order, errors: Floats, moves: Floats) -> Recorded:
        """Exactly, of (row, document, equation) errors and (episode, module, coordinate) moves of
        the weights: X_j Δ is how the errors of j have moved, and G_j = X_jᵀX_j / q."""
        rows, count, q = errors.shape
        found = np.full((4, rows - 1, count), np.nan)
        path = np.cumsum(moves, axis=0)  # (episode, module, coordinate)
        for document in range(self.trained):
            turns = np.flatnonzero(order == document)
            for this, until in itertools.pairwise([*turns, len(order)]):
                then, since = errors[this + 1, document], slice(this, until)
                moved = errors[this + 1 : until + 1, document] - then
                away = (path[since] - path[this]) ** 2
                found[:, since, document] = [
                    reduce(moved**2, "row equation -> row", "sum") / q,
                    moved @ then / q,
                    reduce((then + moved) ** 2 - then**2, "row equation -> row", "sum") / (2 * q),
                    reduce(away, "row module coordinate -> row", "sum"),
                ]
        about = ("ΔᵀGΔ, with G = XᵀX / q", "gᵀΔ", "how the loss changes", "|Δ|²")
        names = ("curvature", "slope", "linear", "distance")
        arrays = {
            name: (Array(EPISODE, ("document",), (count,), text, dtype="float64"), values)
            for name, text, values in zip(names, about, found, strict=True)
        }
        watched = ("document", np.arange(count) < self.trained)
        return Recorded(arrays, {"watched": watched}, {"epochs": 0}, since=1)

    def _inner(self, errors: Floats) -> Recorded:
        """`document_gradients` of (row, document, equation) errors."""
        count = errors.shape[1]
        inner = np.empty((len(errors), 2, count, count))
        for row, e in enumerate(errors):
            left = einsum(self.products, e, "m i a j b, i a -> m i j b")
            inner[row] = einsum(left, e, "m i j b, j b -> m i j") / self.q**2
        about = "inner product of two documents' gradients; held-out documents come last"
        dims = ("module", "document", "other")
        array = Array(EPISODE, dims, inner.shape[1:], about, "nats²", "float64")
        coords = module_coords(halves.MODULES)
        return Recorded({"inner": (array, inner)}, coords, {"every": "epoch"})


def _allocated(allocated: Floats, losses: Floats, trained: int) -> Recorded:
    """(episode, module, document), and the (row, document) losses that they add up to."""
    after = max(0, len(allocated) - LAST * trained)
    kept, change = allocated[after:], np.diff(losses[after:], axis=0)
    about = "loss change of a document by the last episode's change of a module's weights"
    left = "sum of `allocated` over modules minus the recorded change of the loss"
    rows = {
        "allocated": (
            Array(EPISODE, ("module", "document"), kept.shape[1:], about, "nats", "float64"),
            kept,
        ),
        "residual": (
            Array(EPISODE, ("document",), change.shape[1:], left, "nats", "float64"),
            kept.sum(axis=1) - change,
        ),
        "places": (
            Array(EPISODE, (), (), "places on the line where gradients were taken", "1", "int64"),
            np.ones(len(kept), dtype=np.int64),
        ),
    }
    return Recorded(rows, module_coords(halves.MODULES), {"epochs": LAST}, after + 1)


def _token_losses(losses: Floats) -> Recorded:
    """Each equation is a token, of a name of its own. (row, document, equation)"""
    _, documents, q = losses.shape
    names = [[f"{document}.{equation}" for equation in range(q)] for document in range(documents)]
    about = "half the squared error of each equation"
    array = Array(EPISODE, ("document", "position"), (documents, q), about, "nats")
    return Recorded(
        {"loss": (array, losses)}, {"token": (("document", "position"), np.array(names))}
    )


def _outputs(focal: Floats, trained: Floats) -> Recorded:
    """What the equations come to, as if it were the residual stream after a last layer of one
    number at each position. `focal` (row, equation): of document 0; `trained` (episode, equation):
    of each episode's, before its first step."""
    about = "mean over its equations of what the document trained on gives"
    residual = Array(STEP, ("layer", "width"), (1, 1), about)
    final = Array(EPISODE, ("position", "width"), (focal.shape[1], 1), "what document 0 gives")
    return Recorded(
        {
            "residual": (residual, trained.mean(axis=1)[:, None, None]),
            "final": (final, focal[..., None]),
        },
        {"hook_point": ("layer", ["outputs"])},
        {"every": "episode"},
    )
