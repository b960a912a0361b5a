"""Exact inner products between the gradients of all documents, by module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.recorders import (
    EPISODE,
    Array,
    Episode,
    Layout,
    Recorder,
    Rows,
    RunInfo,
    hooked,
    module_coords,
)
from recovery_probe.sketch import module_of

SLICE = 2**22  # values of the documents' gradients that exist at a time
EMBEDDINGS = ("embed.weight", "pos_embed.weight")


class DocumentGradients(Recorder):
    """`inner` (episodes_done, module, document, other): ⟨Gᵢ, Gⱼ⟩ of the gradients of each
    document's mean loss (nats), in eval mode; their sum over modules is that of the whole model.

    One backward pass over the summed loss of all documents gives, for every linear part, its
    inputs a (document, position, in) and the gradients b of its outputs (document, position,
    out); the weight's gradient is bᵀa, of each document by itself. It is formed a few columns at
    a time, for all documents, and only its inner products are kept: the arithmetic of the backward
    pass's own weight gradient, and no gradient of a whole matrix.
    """

    name = "document_gradients"

    def start(self, run: RunInfo) -> Layout:
        from recovery_probe.train import losses_of  # the loop imports the recorders

        self.losses = losses_of
        self.model, self.tokens, self.targets = run.model, run.tokens, run.targets
        self.modules = run.sketches.modules
        self.row = {module: i for i, module in enumerate(self.modules)}
        points = run.model.bridge.hook_dict
        self.kinds: dict[str, list[str]] = {}  # module -> its parameters
        for name in run.model.parameters:
            self.kinds.setdefault(module_of(name), []).append(name)
        for module, names in self.kinds.items():
            if f"{module}.hook_out" not in points or {n.rpartition(".")[2] for n in names} - {
                "weight",
                "bias",
            }:
                raise InputError(
                    f"document_gradients does not know how {module} makes its gradient"
                )
        self.tied = "embed" in self.modules and "unembed" not in self.modules
        documents = len(run.tokens)
        return Layout(
            arrays={
                "inner": Array(
                    EPISODE,
                    ("module", "document", "other"),
                    (len(self.modules), documents, documents),
                    "inner product of two documents' gradients; held-out documents come last",
                    "nats²",
                    "float64",
                ),
            },
            coords=module_coords(self.modules),
            every={EPISODE: run.settings.document_gradients.every},
        )

    def after_episode(self, episode: Episode) -> Rows:
        return {"inner": self.products()}

    def products(self) -> Tensor:
        """(modules, documents, documents) of the model as it stands; checked against autograd."""
        documents = len(self.tokens)
        self.inner = self.tokens.new_zeros(
            len(self.modules), documents, documents, dtype=torch.float64
        )
        self.inputs: dict[str, Tensor] = {}
        self.output_gradients: dict[str, Tensor] = {}
        parameters = self.model.parameters
        self.model.train(False)
        for parameter in parameters.values():
            parameter.grad = None
        with torch.enable_grad(), hooked(self.model.bridge, self._hooks()):
            self.losses(self.model, self.tokens, self.targets).sum().backward()
        # What autograd summed over documents must be what the factors sum to.
        for module, names in self.kinds.items():
            full = sum(squared_norm(parameters[n].grad) for n in names)
            ours = float(self.inner[self.row[module]].sum())
            scale = float(self.inner[self.row[module]].abs().sum()) + 1e-30
            if abs(full - ours) > 1e-3 * scale:
                raise RuntimeError(
                    f"document_gradients: {module}: the factors give {ours:.6g} where autograd "
                    f"gives {full:.6g}; please report the architecture"
                )
        for parameter in parameters.values():
            parameter.grad = None
        return self.inner

    def _hooks(self) -> list[tuple[str, str, Callable[..., None]]]:
        """(hook point, direction, function) for every module."""
        hooks: list[tuple[str, str, Callable[..., None]]] = []
        for module, names in self.kinds.items():
            if module in ("embed", "pos_embed"):
                continue
            norm = f"{module}.hook_normalized" in self.model.bridge.hook_dict
            hooks += [
                (f"{module}.hook_in", "fwd", self._keep(module)),
                (f"{module}.hook_out", "bwd", self._multiply(module, names, norm)),
            ]
        if self.tied:
            hooks += [
                ("unembed.hook_in", "fwd", self._keep("unembed")),
                ("unembed.hook_out", "bwd", self._hold),
            ]
        hooks.append(("embed.hook_out", "bwd", self._embeddings))
        return hooks

    def _keep(self, module: str) -> Callable[..., None]:
        def keep(tensor: Tensor, *, hook: Any) -> None:
            self.inputs[module] = tensor.detach()

        return keep

    def _hold(self, gradient: Tensor, *, hook: Any) -> None:
        self.output_gradients["unembed"] = gradient.detach()

    def _multiply(self, module: str, names: list[str], norm: bool) -> Callable[..., None]:
        def multiply(gradient: Tensor, *, hook: Any) -> None:
            a, b = self.inputs.pop(module), gradient.detach()
            into = self.inner[self.row[module]]
            if norm and any(n.endswith("weight") for n in names):
                # (document, …, width): one weight for each coordinate of the last axis
                into += gram((self._normalized(module, a) * b).flatten(1, -2).sum(1))
            # Heads come split; a norm's bias is shared by whatever stands before its last axis.
            b = b.flatten(1, -2) if norm else b.flatten(2)
            if any(n.endswith("bias") for n in names):
                into += gram(b.sum(1))
            if not norm:
                a = a.flatten(2)
                for part in _slices(a.shape[2], len(b) * b.shape[2]):
                    into += gram(torch.einsum("npo,npi->noi", b, a[..., part]))

        return multiply

    def _normalized(self, module: str, a: Tensor) -> Tensor:
        """What a norm multiplies its weight with, computed as the network itself does (which for
        some is in float32, whatever the weights are): the norm is linear in its weight."""
        norm = self.model.bridge.get_submodule(module).original_component
        weights = (torch.ones_like(norm.weight), torch.zeros_like(norm.weight))
        with torch.no_grad():
            one, zero = (torch.func.functional_call(norm, {"weight": w}, (a,)) for w in weights)
        return one - zero

    def _embeddings(self, gradient: Tensor, *, hook: Any) -> None:
        """Rows of the embeddings; with a tied unembedding, both parts of the one gradient."""
        b = gradient.detach()  # (document, position, width)
        documents, positions, width = b.shape
        if "pos_embed" in self.row:
            # A position's row gets what its token's row gets: the two are added.
            for part in _slices(width, documents * positions):
                self.inner[self.row["pos_embed"]] += gram(b[..., part])
        if "embed" not in self.row:
            return
        rows = self.model.parameters["embed.weight"].shape[0]
        for part in _slices(width, documents * rows):
            piece = b[..., part]
            each = piece.new_zeros(documents, rows, piece.shape[2])
            index = self.tokens[..., None].expand(piece.shape)
            each.scatter_add_(1, index, piece)
            if self.tied:
                c, a = self.output_gradients["unembed"], self.inputs["unembed"]
                each += torch.einsum("npo,npi->noi", c, a[..., part])
            self.inner[self.row["embed"]] += gram(each)


def gram(gradients: Tensor) -> Tensor:
    """(documents, documents), float64: inner products of (documents, …) gradients."""
    flat = gradients.flatten(1)
    return (flat @ flat.T).double()


def squared_norm(gradient: Tensor | None) -> float:
    """In float64, as `gram` sums up."""
    return 0.0 if gradient is None else float(gradient.double().pow(2).sum())


def _slices(columns: int, values_each: int) -> list[slice]:
    width = max(1, SLICE // values_each)
    return [slice(i, i + width) for i in range(0, columns, width)]
