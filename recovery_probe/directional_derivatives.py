"""Derivatives of every document's loss along a direction of the weights, by module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recovery_probe.errors import InputError
from recovery_probe.sketch import module_of
from recovery_probe.training import Training

Weights = Mapping[str, Tensor]  # TransformerLens name -> a weight, or a direction of it
# Parts whose output is 0 where their weights are. A norm may multiply with 1 + its weight.
WITHOUT_REST = (nn.Linear, nn.Embedding, Conv1D)
# How far what autograd gives may be from ours, of the product of two norms. In bfloat16 a CPU adds
# a norm's gradient up in 8 bits.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.5}


class DirectionalDerivatives:
    """⟨∇_m l_j, d_m⟩ of each document j's mean loss (nats), in eval mode, for a direction d of all
    weights and every module m; their sum over modules is the derivative of l_j along d.

    What a part of the network gives is linear in its weights: moved by s·d they change f(a, w) by
    s·(f(a, d) - f(a, 0)). That is added, with an s of 0 for each document and module, and one
    backward pass gives the derivatives by all of them. No gradient of a weight is formed: a pass
    costs what a gradient step on so many documents would.

    Raises `InputError` for a model with a part that uses its weights in another way: autograd's
    gradients of the first two documents are compared.
    """

    def __init__(self, training: Training) -> None:
        self.training, self.model = training, training.model
        self.modules = list(dict.fromkeys(map(module_of, self.model.parameters)))
        self.row = {module: i for i, module in enumerate(self.modules)}
        names = {id(parameter): name for name, parameter in self.model.parameters.items()}
        owners: dict[nn.Module, dict[str, str]] = {}  # of weights: its name of each -> ours
        for part in self.model.bridge.modules():
            own = {n: names[id(p)] for n, p in part._parameters.items() if id(p) in names}
            if own:
                owners[part] = own
        self.parts = self._at_work(owners)
        self._check()

    def __call__(self, direction: Weights, count: int | None = None) -> Tensor:
        """(modules, documents), float64, nats, at the weights as they stand: of all documents or
        the first `count`."""
        count, size = count or len(self.training.documents), self.training.settings.eval_batch
        found = []
        self.model.train(False)
        with torch.enable_grad():
            for start in range(0, count, size):
                these = slice(start, min(start + size, count))
                by = torch.zeros(these.stop - start, len(self.modules), device=self.model.device)
                by = by.to(torch.promote_types(next(iter(direction.values())).dtype, by.dtype))
                by.requires_grad_()
                with self._moved(direction, by):
                    losses = self.training.losses(these)
                found.append(torch.autograd.grad(losses.sum(), by)[0])
        return rearrange(torch.cat(found).double(), "document module -> module document")

    def along(self, path: Sequence[Weights], places: int) -> Tensor:
        """(modules, documents), float64, nats: ∫⟨∇_m l_j, d_m w⟩ on the straight lines from one of
        the weights in `path` to the next, and from the last to the weights as they stand; on each
        by Gauss-Legendre, exact where losses on it are polynomials of degree 2·places. The weights
        are moved, and put back to the bit."""
        parameters = self.model.parameters
        end = {name: p.detach().clone() for name, p in parameters.items()}
        nodes, weights = np.polynomial.legendre.leggauss(places)  # on [-1, 1]
        total = torch.zeros(())
        try:
            for start, stop in itertools.pairwise([*path, end]):
                direction = {name: stop[name] - start[name] for name in end}
                for node, weight in zip(nodes, weights, strict=True):
                    for name, parameter in parameters.items():
                        at = torch.lerp(start[name], stop[name], (1 + node) / 2)
                        parameter.data.copy_(at)
                    total = total + self(direction) * (weight / 2)
        finally:
            for name, parameter in parameters.items():
                parameter.data.copy_(end[name])
        return total

    def _at_work(
        self, owners: dict[nn.Module, dict[str, str]]
    ) -> list[tuple[nn.Module, dict[str, str]]]:
        """The parts of the network that a pass calls, each with its names of weights and ours.
        TransformerLens computes some norms itself, in the place of their owner."""
        called: set[nn.Module] = set()
        handles = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in owners]
        try:
            with torch.no_grad():
                self.training.losses(slice(1))
        finally:
            for handle in handles:
                handle.remove()
        around = {getattr(w, "original_component", None): w for w in self.model.bridge.modules()}
        found: list[tuple[nn.Module, dict[str, str]]] = []
        for part, own in owners.items():
            if part not in called and part in around:
                own = {f"_original_component.{name}": ours for name, ours in own.items()}
                part = around[part]
            found.append((part, own))
        return found

    @contextmanager
    def _moved(self, direction: Weights, by: Tensor) -> Iterator[None]:
        """Meanwhile every part gives what it would with its weights moved along the direction, `by`
        (documents, modules)."""
        handles = []
        try:
            for part, own in self.parts:
                # A tied unembedding may have a bias of its own: weights of two modules.
                for module in dict.fromkeys(map(module_of, own.values())):
                    moving = {n: direction[o] for n, o in own.items() if module_of(o) == module}
                    hook = _moving(part, moving, by[:, self.row[module]])
                    handles.append(part.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check(self) -> None:
        """Raise `InputError` unless the derivatives of two documents along the gradient of the
        first are the inner products of their gradients, module by module."""
        parameters, gradients = self.model.parameters, []
        count = min(2, len(self.training.documents))
        self.model.train(False)
        for i in range(count):
            with torch.enable_grad():
                (loss,) = self.training.losses(slice(i, i + 1))
                each = torch.autograd.grad(loss, list(parameters.values()))
            gradients.append(dict(zip(parameters, each, strict=True)))
        ours = self(gradients[0], count).tolist()
        for module, derivatives in zip(self.modules, ours, strict=True):
            own = [name for name in parameters if module_of(name) == module]
            first, *_ = every = [
                torch.cat([g[n].flatten().double() for n in own]) for g in gradients
            ]
            for derivative, gradient in zip(derivatives, every, strict=True):
                exact, scale = float(gradient @ first), float(gradient.norm() * first.norm())
                if abs(derivative - exact) > TOLERANCE[parameters[own[0]].dtype] * scale:
                    raise InputError(
                        f"allocation does not know how {module} uses its weights (it finds "
                        f"{derivative:.6g} where autograd gives {exact:.6g}); leave it out: "
                        "--no-record allocation"
                    )


def _moving(part: nn.Module, moving: Weights, by: Tensor) -> Callable[..., Any]:
    """A forward hook of a part: what it gives with its weights moved in their direction `moving`,
    `by` (documents,)."""
    none = {name: torch.zeros_like(p) for name, p in part.named_parameters()}
    at_work = False

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal at_work
        if at_work:
            return None
        if not isinstance(output, Tensor) or (len(output) % len(by) and len(output) > 1):
            raise InputError(
                f"allocation does not know what {type(part).__name__} gives of each document; "
                "leave it out: --no-record allocation"
            )
        at_work = True
        try:
            with torch.no_grad():
                change = torch.func.functional_call(part, {**none, **moving}, args, kwargs)
                if not isinstance(part, WITHOUT_REST):
                    change = change - torch.func.functional_call(part, none, args, kwargs)
        finally:
            at_work = False
        # Some networks put the positions of all documents into one axis.
        rows = max(1, len(output) // len(by))
        each = repeat(by, f"document -> (document row) {'1 ' * (output.ndim - 1)}", row=rows)
        return output + (each * change).to(output.dtype)

    return hook
