"""Gradients or updates without what they have in given directions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from recovery_probe.errors import HookError, InputError
from recovery_probe.interventions import NOTEBOOK, Intervention, Step
from recovery_probe.spelling import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training

DEPENDENT = 1e-6  # part of a direction that is outside of those before it, at least
NOTHING = 1e-5  # part of a vector that must remain of it for its norm to be given back


@dataclass
class Project(Intervention):
    """Takes away, from every gradient or every update of the weights, its component in the span of
    k given directions. A direction lies in the space of all weights: it is spread over the
    parameters that are named, and 0 in the others."""

    name = "project"

    # safetensors file of the directions: TransformerLens name of a parameter -> (k, *its shape)
    directions: str = ""
    # gradient: before the optimizer sees it; update: what the optimizer did to the weights
    of: Literal["gradient", "update"] = "gradient"
    # scale what remains, of all parameters, to the norm that the whole had
    keep_norm: bool = False

    @classmethod
    def along(cls, directions: Mapping[str, Tensor], **settings: Any) -> Self:
        """Along directions that are at hand in a notebook. The settings tell them apart from
        others, and cannot bring them back."""
        import torch

        tensors = {n: torch.as_tensor(t).detach().cpu() for n, t in sorted(directions.items())}
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in tensors.items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.double().numpy().tobytes())
        made = cls(directions=f"{NOTEBOOK}{digest.hexdigest()}", **settings)
        vars(made)["given"] = tensors
        return made

    def start(self, training: Training) -> None:
        self.parameters = training.model.parameters
        given: Mapping[str, Tensor] | None = vars(self).get("given")
        tensors = self._read() if given is None else given
        self._check(tensors)
        self.basis = self._orthonormal(tensors)

    def gradients(self, step: Step) -> None:
        if self.of == "gradient":
            moving = self._moving(step)
            whole = {name: p.grad for name, p in moving.items()}
            for name, rest in self._outside(whole, step).items():
                moving[name].grad.copy_(rest)

    def before_step(self, step: Step) -> None:
        if self.of == "update":
            names = self.parameters if self.keep_norm else self.basis
            self.before = {name: self.parameters[name].detach().clone() for name in names}

    def weights(self, step: Step) -> None:
        import torch

        if self.of == "update":
            moving = {name: p.detach() for name, p in self._moving(step).items()}
            for name, weight in moving.items():
                weight.sub_(self.before[name])  # the update, in the memory of the weights
            for name, rest in self._outside(moving, step).items():
                torch.add(self.before[name], rest, out=moving[name])

    def _moving(self, step: Step) -> Mapping[str, Any]:
        """The parameters whose gradient or update changes. Raises `HookError` where directions lie
        in one that is held fixed: taking their component away would move it."""
        names = self.parameters if self.keep_norm else self.basis
        moving = {n: self.parameters[n] for n in names if self.parameters[n].grad is not None}
        if fixed := [name for name in self.basis if name not in moving]:
            raise HookError(
                f"intervention project, in step {step.index}: {fixed[0]} has no gradient, as if it "
                "were held fixed; leave it out of the directions"
            )
        return moving

    def _outside(self, whole: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        """What remains of a vector; it and this by parameter, worked out in float32 at least. In
        its own memory where it has that format: vectors are as large as the network."""
        import torch
        from einops import einsum
        from torch.nn.utils import get_total_norm

        wide = next(iter(self.basis.values())).dtype
        rest = {name: tensor.to(wide) for name, tensor in whole.items()}
        norm = get_total_norm(rest.values()) if self.keep_norm else 0
        each = [
            einsum(basis, rest[name].flatten(), "direction value, value -> direction")
            for name, basis in self.basis.items()
        ]
        along = torch.stack(each).sum(0)
        for name, basis in self.basis.items():
            inside = einsum(along, basis, "direction, direction value -> value")
            rest[name].sub_(inside.view_as(rest[name]))
        if not norm:
            return rest
        left = get_total_norm(rest.values())
        if left < NOTHING * norm:
            raise HookError(
                f"intervention project, in step {step.index}: nothing of the {self.of} is outside "
                "its directions, so that its norm cannot be kept"
            )
        torch._foreach_mul_(list(rest.values()), norm / left)
        return rest

    @property
    def _where(self) -> str:
        return f"project.directions = {self.directions!r}"

    def _read(self) -> Mapping[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.directions:
            raise InputError("project.directions: no file given")
        if self.directions.startswith(NOTEBOOK):
            raise InputError(
                f"{self._where}: directions of a notebook; pass them to fit again, or name a file "
                "(safetensors.torch.save_file)"
            )
        try:
            return load_file(self.directions)
        except FileNotFoundError:
            raise InputError(f"{self._where}: no such file") from None
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self._where}: cannot be read as safetensors: {error}") from error

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `InputError` for directions that are not in the space of this network's weights."""
        if not tensors:
            raise InputError(f"{self._where}: there are none")
        for name, tensor in tensors.items():
            if name not in self.parameters:
                near = nearest(name, self.parameters)
                raise InputError(f"{self._where}: the network has no parameter {name!r}{near}")
            shape = tuple(self.parameters[name].shape)
            if tuple(tensor.shape[1:]) != shape or not len(tensor):
                raise InputError(
                    f"{self._where}: {name} has shape {tuple(tensor.shape)}; expected (k, "
                    f"{', '.join(map(str, shape))}), k directions"
                )
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise InputError(
                    f"{self._where}: {name} holds values that are no finite real numbers"
                )
        counts = {name: len(tensor) for name, tensor in tensors.items()}
        if len({*counts.values()}) > 1:
            pairs = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"{self._where}: every parameter needs as many directions: {pairs}")

    def _orthonormal(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter -> (direction, value): an orthonormal basis of the directions' span, where
        the parameter is. Raises `InputError` unless they are independent."""
        import numpy as np
        import torch
        from einops import rearrange

        from recovery_probe import subspaces

        # Cholesky's factor of their cosines: its diagonal is the part of each direction, of length
        # 1, that is outside of those before it.
        inner = subspaces.gram(tensors)
        lengths = np.sqrt(inner.diagonal())
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        cosines = torch.from_numpy(inner * np.outer(scale, scale))
        lower, failed = torch.linalg.cholesky_ex(cosines)
        outside = lower.diagonal()[: int(failed) - 1 if failed else None] > DEPENDENT
        if (independent := int(outside.cumprod(0).sum())) < len(inner):
            raise InputError(
                f"{self._where}: direction {independent} is 0, or made of those before it"
            )
        basis = subspaces.combined(tensors, np.linalg.solve(lower.numpy(), np.diag(scale)))
        return {
            name: rearrange(each, subspaces.FLAT).to(
                self.parameters[name].device,
                torch.promote_types(self.parameters[name].dtype, torch.float32),
            )
            for name, each in basis.items()
        }
