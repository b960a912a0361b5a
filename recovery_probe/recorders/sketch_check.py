"""How far sketches are off, measured in the run itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recovery_probe.sketch import ModuleSketches, module_of

CHECKS = 4  # pairs of neighbouring steps whose inner products are also taken exactly
CHECKED_VALUES = 2**24  # parameters, at most, that are kept aside for that


class SketchCheck:
    """Exact cosines beside sketched ones, for a few pairs of neighbouring recorded steps."""

    def __init__(
        self, sketches: ModuleSketches, parameters: dict[str, Any], steps: NDArray[np.int64]
    ) -> None:
        self.size = sketches.size
        self.rows: dict[int, list[Any]] = {}  # row of a module -> its parameters
        room = CHECKED_VALUES
        for row, module in enumerate(sketches.modules):
            own = [p for name, p in parameters.items() if module_of(name) == module]
            size = sum(p.numel() for p in own)
            if size <= room:
                room -= size
                self.rows[row] = own
        places = np.linspace(0, max(0, len(steps) - 2), CHECKS).astype(int)
        self.chosen = {int(steps[i]) for i in places}
        self.before: tuple[dict[int, Tensor], Tensor] | None = None
        self.errors: list[Tensor] = []

    def __call__(self, step: int, sketch: Tensor) -> None:
        """Keep the gradients of a chosen step; compare with those of the next recorded one."""
        if self.before is None and step not in self.chosen:
            return
        now = {
            row: torch.cat([gradient_of(p).flatten() for p in own])
            for row, own in self.rows.items()
        }
        if self.before is not None:
            old, old_sketch = self.before
            self.errors += [
                _cosine(old_sketch[row], sketch[row]) - _cosine(old[row], now[row]) for row in now
            ]
        self.before = (now, sketch.clone()) if step in self.chosen else None

    def facts(self) -> dict[str, Any]:
        """Root-mean-square and largest error of the cosine, over modules and pairs of steps."""
        errors = torch.stack(self.errors).double().cpu() if self.errors else torch.empty(0)
        errors = errors[torch.isfinite(errors)]
        return {
            "of": "cosine of neighbouring steps' gradients, by module: sketched minus exact",
            "compared": len(errors),
            "rms": float(errors.pow(2).mean().sqrt()) if len(errors) else None,
            "largest": float(errors.abs().max()) if len(errors) else None,
            "expected_at_most": self.size**-0.5,
            "modules": len(self.rows),
        }


def gradient_of(parameter: Tensor) -> Tensor:
    """In float32 at least, as sketches are; 0 where nothing asked for one."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())
