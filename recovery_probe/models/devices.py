"""Where a model is trained, and the random numbers that are drawn there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recovery_probe.errors import InputError


@contextmanager
def lent_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators, of the CPU and of this device, with our seed, and put back
    afterwards. `torch.manual_seed` would reseed those of every GPU."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    if device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises `InputError` for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"device = {name!r} cannot be used here: {reason}") from None
    return device
