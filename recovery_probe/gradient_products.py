"""Exact inner products between the gradients of all documents, by module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.hooking import hooked, shapes_at
from recovery_probe.sketch import module_of
from recovery_probe.training import Training

SLICE = 2**24  # values of the documents' gradients that exist at a time: 64 MB in float32
FACTORS = 2**32  # bytes of factors that are kept for the documents of other batches
# How far what autograd summed over documents may be from our sum, of the sum of magnitudes.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 2e-2}
# Of a linear part: heads come split. Of a norm: a weight for each coordinate of the last axis.
JOINED = "document position ... -> document position (...)"
SHARED = "document ... width -> document (...) width"
PRODUCT = "document position out, document position width -> document out width"  # bᵀa of each


class GradientProducts:
    """Inner products ⟨Gᵢ, Gⱼ⟩ of the gradients of each document's mean loss (nats), or of another
    number of each document, in eval mode.

    A backward pass over the summed losses of several documents gives, for every linear part, its
    inputs a (document, position, in) and the gradients b of its outputs (document, position,
    out); the weight's gradient is bᵀa, of each document by itself. It is formed a slice at a time,
    for all documents, and only its inner products are kept: the arithmetic of the backward pass's
    own weight gradient, and no gradient of a whole matrix.

    Documents pass `eval_batch` at a time. With more than one batch a and b are kept until all
    documents are through: of as many modules as fit `FACTORS`, and of the others in further passes.

    Raises `InputError` for a model with a part that makes its gradient in another way.
    """

    def __init__(self, training: Training) -> None:
        self.training, self.model = training, training.model
        if "tokens" not in training.inputs:
            raise InputError("document_gradients: documents without tokens")
        points, own = self.model.bridge.hook_dict, self.model.parameters
        self.kinds: dict[str, list[str]] = {}  # module -> its parameters
        for name in own:
            self.kinds.setdefault(module_of(name), []).append(name)
        for module, names in self.kinds.items():
            if f"{module}.hook_out" not in points or {n.rpartition(".")[2] for n in names} - {
                "weight",
                "bias",
            }:
                raise InputError(
                    f"document_gradients does not know how {module} makes its gradient; leave it "
                    "out: --no-record document_gradients"
                )
        self.modules = list(self.kinds)
        self.row = {module: i for i, module in enumerate(self.modules)}
        self.tied = "embed.weight" in own and "unembed.weight" not in own
        if self.tied:
            self.kinds.setdefault("unembed", [])
        self.batch = training.settings.eval_batch
        self.sizes = shapes_at(
            training, [f"{m}.{end}" for m in self.kinds for end in ("hook_in", "hook_out")]
        )

    def __call__(
        self, count: int | None = None, of: Callable[[slice], Tensor] | None = None
    ) -> Tensor:
        """(modules, documents, documents), float64, of the model as it stands, of all documents or
        the first `count`; checked against autograd. `of`: what the gradients are of, (documents,)
        numbers of some documents, of each by itself, instead of their losses."""
        self.of = of or self.training.losses
        self.count = count or len(self.training.documents)
        shape = (len(self.modules), self.count, self.count)
        self.inner = torch.zeros(shape, dtype=torch.float64, device=self.model.device)
        self.model.train(False)
        for modules in self._groups():
            self._pass(modules)
        return self.inner

    def _groups(self) -> list[list[str]]:
        """Modules whose factors are kept at the same time; all, when every document is in one
        batch. A tied unembedding goes with the embedding."""
        together = ["embed", "pos_embed", "unembed"]
        first = [m for m in together if m in self.kinds]
        order = [*first, *(m for m in self.kinds if m not in together)]
        if self.batch >= self.count:
            return [order]
        groups: list[list[str]] = []
        room, bytes_each = 0.0, max(p.element_size() for p in self.model.parameters.values())
        for module in order:
            shapes = [self.sizes.get(f"{module}.{end}", ()) for end in ("hook_in", "hook_out")]
            need = sum(math.prod(shape) for shape in shapes) * self.count * bytes_each
            if need > room and not (groups and module in together):
                groups.append([])
                room = float(FACTORS)
            groups[-1].append(module)
            room -= need
        return groups

    def _pass(self, modules: list[str]) -> None:
        """Inner products of these modules: all documents forward and backward, batch by batch."""
        parameters = self.model.parameters
        self.a: dict[str, Tensor] = {}  # module -> its inputs, of all documents of the batches
        self.b: dict[str, Tensor] = {}  # … the gradients of its outputs
        self.summed: dict[str, float] = {}  # module -> squared norm, where autograd's is not used
        for parameter in parameters.values():
            parameter.grad = None
        with torch.enable_grad(), hooked(self.model.bridge, self._hooks(modules)):
            for start in range(0, self.count, self.batch):
                self.these = slice(start, min(start + self.batch, self.count))
                self.of(self.these).sum().backward()
        self._embeddings()
        for module in list(self.b):
            self._multiply(module)
        # What autograd summed over documents must be what the factors sum to.
        for module in (m for m in modules if m in self.row):
            exact_sum = self.summed.get(module)
            if exact_sum is None:
                exact_sum = sum(squared_norm(parameters[n].grad) for n in self.kinds[module])
            inner = self.inner[self.row[module]]
            ours, scale = float(inner.sum()), float(inner.abs().sum()) + 1e-30
            if abs(exact_sum - ours) > TOLERANCE[next(iter(parameters.values())).dtype] * scale:
                raise RuntimeError(
                    f"document_gradients: {module}: the factors give {ours:.6g} where autograd "
                    f"gives {exact_sum:.6g}; please report the architecture"
                )
        for parameter in parameters.values():
            parameter.grad = None

    def _hooks(self, modules: list[str]) -> list[tuple[str, str, Callable[..., None]]]:
        """(hook point, direction, function) for every module."""
        hooks: list[tuple[str, str, Callable[..., None]]] = []
        for module in modules:
            if module not in ("embed", "pos_embed"):
                hooks.append((f"{module}.hook_in", "fwd", self._keep(self.a, module)))
                hooks.append((f"{module}.hook_out", "bwd", self._keep(self.b, module)))
        if "embed" in modules or "pos_embed" in modules:
            hooks.append(("embed.hook_out", "bwd", self._keep(self.b, "embed")))
        return hooks

    def _keep(self, where: dict[str, Tensor], module: str) -> Callable[..., None]:
        """Keep what a hook point shows. With one batch it is used as soon as it is whole."""

        def keep(tensor: Tensor, *, hook: Any) -> None:
            tensor = tensor.detach()
            if self.batch >= self.count:
                where[module] = tensor
                linear = module in self.a and module in self.b
                if linear and not (module == "unembed" and self.tied):
                    self._multiply(module)
                return
            if module not in where:
                where[module] = tensor.new_empty(self.count, *tensor.shape[1:])
            where[module][self.these] = tensor

        return keep

    def _multiply(self, module: str) -> None:
        """Add the inner products of a module's gradients, from its factors, and let these go."""
        a, b, names = self.a.pop(module), self.b.pop(module), self.kinds[module]
        if not names:
            return
        into = self.inner[self.row[module]]
        norm = f"{module}.hook_normalized" in self.model.bridge.hook_dict
        weight = any(n.endswith("weight") for n in names)
        if norm and b.dtype == torch.bfloat16:
            self._sum_exactly(module, a, b)
        if norm and weight:
            each = exact(self._normalized(module, a)) * exact(b)
            into += gram(rearrange(each, SHARED).sum(1))
        b = exact(rearrange(b, SHARED if norm else JOINED))
        if any(n.endswith("bias") for n in names):
            into += gram(b.sum(1))
        if not norm and weight:
            a = exact(rearrange(a, JOINED))
            if b.shape[2] < a.shape[2]:
                a, b = b, a  # slices are cut from the longer side, which is so read once
            for part in _slices(b.shape[2], len(a) * a.shape[2]):
                into += gram(einsum(b[..., part], a, PRODUCT))

    def _normalized(self, module: str, a: Tensor) -> Tensor:
        """What a norm multiplies its weight with, computed as the network itself does (which for
        some is in float32, whatever the weights are): the norm is linear in its weight."""
        norm = self.model.bridge.get_submodule(module).original_component
        weights = (torch.ones_like(norm.weight), torch.zeros_like(norm.weight))
        with torch.no_grad():
            scaled, rest = (torch.func.functional_call(norm, {"weight": w}, (a,)) for w in weights)
        return scaled - rest

    def _sum_exactly(self, module: str, a: Tensor, b: Tensor) -> None:
        """Let autograd sum a LayerNorm's gradient over documents in float32, from its factors. In
        bfloat16 a CPU adds a row for each position up in 8 bits, and stands still: gpt_neox's
        `blocks.1.ln1` loses 20% in 900 positions and 75% in 6,400 of the squared norm that
        float64 gives for the same weights (ours: 0.2%)."""
        norm = self.model.bridge.get_submodule(module).original_component
        if not isinstance(norm, torch.nn.LayerNorm):
            return
        own = {n: exact(p.detach()).requires_grad_() for n, p in norm.named_parameters()}
        with torch.enable_grad():
            out = torch.func.functional_call(norm, own, (exact(a),))
            gradients = torch.autograd.grad(out, list(own.values()), exact(b))
        self.summed[module] = sum(squared_norm(g) for g in gradients)

    def _embeddings(self) -> None:
        """Rows of the embeddings; with a tied unembedding, both parts of the one gradient."""
        if "embed" not in self.b:
            return
        b = exact(self.b.pop("embed"))  # (document, position, width)
        if "pos_embed" in self.row:
            # A position's row gets what its token's row gets: the two are added.
            for part in _slices(b.shape[2], b.shape[0] * b.shape[1]):
                self.inner[self.row["pos_embed"]] += gram(b[..., part])
        if "embed" not in self.row:
            return
        tokens = self.training.inputs["tokens"][: self.count]
        embed = self.model.bridge.embed.original_component
        # Some embeddings multiply their rows, and the row of a padding token is not trained.
        with torch.no_grad():
            ones = {"weight": torch.ones_like(embed.weight)}
            b = b * exact(torch.func.functional_call(embed, ones, (tokens,)))
        if embed.padding_idx is not None:
            b = b.masked_fill((tokens == embed.padding_idx)[..., None], 0.0)
        rows, places = len(embed.weight), tokens
        if self.tied:
            c, a = exact(self.b["unembed"]), exact(self.a["unembed"])
        else:  # the rows of other tokens are 0
            known, places = tokens.unique(return_inverse=True)
            rows = len(known)
        for part in _slices(rows, self.count * b.shape[2]):
            size = part.stop - part.start
            inside = ((places >= part.start) & (places < part.stop))[..., None]
            index = (places - part.start).clamp(0, size - 1)[..., None].expand(b.shape)
            each = b.new_zeros(self.count, size, b.shape[2]).scatter_add_(1, index, b * inside)
            if self.tied:
                each += einsum(c[..., part], a, PRODUCT)
            self.inner[self.row["embed"]] += gram(each)


def gram(gradients: Tensor) -> Tensor:
    """(documents, documents), float64: inner products of (documents, …) gradients."""
    flat = gradients.flatten(1)
    return (flat @ flat.T).double()


def squared_norm(gradient: Tensor | None) -> float:
    """In float64, as `gram` sums up."""
    return 0.0 if gradient is None else float(gradient.double().pow(2).sum())


def exact(tensor: Tensor) -> Tensor:
    """In float32 at least: products and sums of bfloat16 would lose what they are for."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _slices(columns: int, values_each: int) -> list[slice]:
    width = max(64, SLICE // values_each)
    return [slice(i, min(i + width, columns)) for i in range(0, columns, width)]
