"""Random projections that keep inner products, at memory speed.

A vector is cut into rows of length k, each row is multiplied by a random sign, and the rows are
added: one matrix-vector product. Two coordinates of a row never collide and two rows have
independent signs, so that inner products are unbiased, with an error of about |x||y| / √k. It is
linear: the sketch of a sum is the sum of sketches.

Long vectors are folded twice, first to `FIRST` and then to the size asked for: a product with
short rows is several times slower, and the first fold adds next to nothing to the error.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FIRST = 8191  # prime, so that rows do not line up with those of a weight matrix


def signs(key: str, count: int) -> Tensor:
    """(count,) of ±1, float32: the same on every machine and device, for the key decides them
    through a counter-based generator (Philox)."""
    words = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=16).digest(), dtype="<u8")
    raw = np.random.Philox(key=words).random_raw(-(-count // 64)).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


class Fold:
    """Rows of length `size`, times signs, added."""

    def __init__(self, key: str, length: int, size: int) -> None:
        self.size = size
        self.signs = signs(key, -(-length // size))  # one for each row, the last perhaps short

    def __call__(self, flat: Tensor, offset: int = 0) -> Tensor:
        """(size,): of a vector, or of the piece of it that starts at coordinate `offset`."""
        if self.signs.device != flat.device or self.signs.dtype != flat.dtype:
            self.signs = self.signs.to(flat)
        if offset % self.size:  # up to the next whole row
            column = offset % self.size
            head = flat[: self.size - column]
            out = flat.new_zeros(self.size)
            out[column : column + len(head)] = head * self.signs[offset // self.size]
            rest = flat[len(head) :]
            return out + self(rest, offset + len(head)) if len(rest) else out
        first = offset // self.size
        rows = len(flat) // self.size
        out = self.signs[first : first + rows] @ flat[: rows * self.size].view(rows, self.size)
        tail = flat[rows * self.size :]
        if len(tail):
            out[: len(tail)] += tail * self.signs[first + rows]
        return out


class Sketch:
    """A linear map from `length` coordinates to `size`, decided by `seed` and `name` alone."""

    def __init__(self, name: str, length: int, size: int, seed: int = 0) -> None:
        twice = length > FIRST > size
        self.first = Fold(f"{seed}/{name}/first", length, FIRST) if twice else None
        self.second = Fold(f"{seed}/{name}", FIRST if twice else length, size)

    def __call__(self, values: Tensor, offset: int = 0) -> Tensor:
        """(size,): the sketch of a tensor, flattened, or of a piece that starts at `offset`."""
        flat = values.detach().reshape(-1)
        if self.first is None:
            return self.second(flat, offset)
        return self.second(self.first(flat, offset))


class ModuleSketches:
    """Sketches and exact norms of a set of parameter-shaped tensors, one for each module.

    `modules` are TransformerLens names without the last word: the weight and the bias of
    `blocks.3.attn.q` are one vector.
    """

    def __init__(self, parameters: Mapping[str, Tensor], size: int, seed: int = 0) -> None:
        self.size = size
        self.modules = list(dict.fromkeys(module_of(name) for name in parameters))
        self.sketches = {n: Sketch(n, p.numel(), size, seed) for n, p in parameters.items()}
        # The second folds of all tensors are done at once: one by one, their calls cost as much
        # as the arithmetic. A shorter vector's signs are the first of a longer one's.
        self.width = -(-max(min(FIRST, p.numel()) for p in parameters.values()) // size) * size
        table = [s.second.signs for s in self.sketches.values()]
        self.signs = torch.stack([F.pad(row, (0, self.width // size - len(row))) for row in table])
        position = {module: i for i, module in enumerate(self.modules)}
        self.row = torch.tensor([position[module_of(name)] for name in parameters])
        self.place = {name: i for i, name in enumerate(parameters)}
        self._last: tuple[int, tuple[Tensor, Tensor]] | None = None

    def of_gradients(self, step: int, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sketches and norms of the gradients at a step; worked out once a step, whoever asks."""
        if self._last is None or self._last[0] != step:
            one = next(iter(parameters.values()))
            gradients = ((n, g) for n, p in parameters.items() if (g := p.grad) is not None)
            self._last = step, self(gradients, like=one)
        return self._last[1]

    def __call__(
        self,
        tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        like: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(modules, size) sketches and (modules,) exact Euclidean norms, worked out in float32 at
        least. Pairs of name and tensor are taken one by one, so that they need not exist at the
        same time; a parameter that is not among them counts as 0. `like`, where there may be none
        at all, tells the device."""
        pairs = iter(tensors.items() if isinstance(tensors, Mapping) else tensors)
        first = next(pairs, None)
        one = first[1] if first else like
        if one is None:
            raise ValueError("no tensor to sketch")
        dtype = torch.promote_types(one.dtype, torch.float32)
        if self.signs.device != one.device or self.signs.dtype != dtype:
            self.signs, self.row = self.signs.to(one.device, dtype), self.row.to(one.device)
        short = self.signs.new_zeros(len(self.sketches), self.width)
        squares = self.signs.new_zeros(len(self.sketches))
        for name, tensor in itertools.chain([first] if first else [], pairs):
            flat, row = tensor.detach().reshape(-1).to(dtype), self.place[name]
            fold = self.sketches[name].first
            short[row, : min(FIRST, len(flat))] = fold(flat) if fold else flat
            squares[row] = flat @ flat  # right after, while it may still be in the cache
        folded = torch.einsum("pr,prk->pk", self.signs, short.view(len(short), -1, self.size))
        sketched = short.new_zeros(len(self.modules), self.size).index_add_(0, self.row, folded)
        norms = short.new_zeros(len(self.modules)).index_add_(0, self.row, squares)
        return sketched, norms.sqrt()


def module_of(name: str) -> str:
    """`blocks.3.attn.q` of `blocks.3.attn.q.weight`."""
    return name.rpartition(".")[0]
