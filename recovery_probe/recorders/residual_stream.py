"""The training document's residual stream at every step, and the focal document's last one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE, STEP, Array
from recovery_probe.recorders import Episode, Hook, Layout, Recorder, Rows, Step

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training


@dataclass
class ResidualStream(Recorder):
    """`residual` (step, layer, …): before block 0 (layer 0) and after each block, reduced over the
    real positions as `residual_stream.reduce` says. `final` (episodes_done, position, width): the
    focal document's stream after the last block, before the final norm and the unembedding, at
    all positions, NaN past its length; `focal` (episodes_done, layer, position, width): the same
    at every layer, when `residual_stream.focal_layers` is `all`."""

    name = "residual_stream"

    # step, N steps, episode (its first step) or epoch
    every: str = "step"
    # the mean over positions, the last position, or all of them in float16
    reduce: Literal["mean", "last", "all"] = "mean"
    # the document whose final residual stream is kept after every episode
    focal: Annotated[int, Ge(0)] = 0
    # keep the focal document's stream after the last block, or at every layer too
    focal_layers: Literal["last", "all"] = "last"

    def start(self, training: Training) -> Layout:
        from recovery_probe.recorders.points import Points

        bridge, documents = training.model.bridge, training.documents
        if not self.focal < documents.trained:
            raise InputError(
                f"residual_stream.focal = {self.focal}: the documents trained on are 0 to "
                f"{documents.trained - 1}"
            )
        self.length = int(documents.lengths[self.focal])
        blocks, width = len(bridge.blocks), bridge.cfg.d_model
        layers, positions = blocks + 1, documents.mask.shape[1]
        points = ["blocks.0.hook_resid_pre"]
        points += [f"blocks.{i}.hook_resid_post" for i in range(blocks)]
        focal = points if self.focal_layers == "all" else points[-1:]
        self.trained, self.evaluated = Points(points), Points(focal)
        full = self.reduce == "all"
        rounded = "; float16: rounded to 1 in 2048, and inf beyond 65504"
        arrays = {
            "residual": Array(
                STEP,
                ("layer", "position", "width") if full else ("layer", "width"),
                (layers, positions, width) if full else (layers, width),
                f"residual stream of the training document, {self.reduce} of positions; "
                "layer 0 is before block 0, layer i after block i - 1" + (rounded if full else ""),
                dtype="float16" if full else "float32",
            ),
            "final": Array(
                EPISODE,
                ("position", "width"),
                (positions, width),
                f"residual stream of document {self.focal} after the last block{rounded}",
                dtype="float16",
            ),
        }
        if self.focal_layers == "all":
            arrays["focal"] = Array(
                EPISODE,
                ("layer", "position", "width"),
                (layers, positions, width),
                f"residual stream of document {self.focal} at every layer{rounded}",
                dtype="float16",
            )
        return Layout(
            arrays,
            coords={"hook_point": ("layer", points)},
            every={STEP: self.every},
            hooks=(
                *(Hook(point, self.watch_training) for point in points),
                *(Hook(point, self.watch_evaluation, during="evaluation") for point in focal),
            ),
        )

    def watch_training(self, tensor: Tensor, *, hook: Any, moment: Step) -> None:
        real = tensor.detach()[0, : moment.length]
        if self.reduce == "mean":
            real = real.mean(0)
        elif self.reduce == "last":
            real = real[-1]
        else:
            real = pad(real.half(), tensor.shape[1])
        self.trained.put(hook.name, real)

    def after_backward(self, step: Step) -> Rows:
        return self.trained.rows("residual")

    def watch_evaluation(self, tensor: Tensor, *, hook: Any, moment: range) -> None:
        if self.focal in moment:
            real = tensor.detach()[moment.index(self.focal), : self.length].half()
            self.evaluated.put(hook.name, pad(real, tensor.shape[1]))

    def after_episode(self, episode: Episode) -> Rows:
        row = self.evaluated.row()  # (layer, position, width), of the last layer or of all
        if row is None:
            return None
        final = {"final": row[-1]}
        return final | {"focal": row} if self.focal_layers == "all" else final


def pad(real: Tensor, positions: int) -> Tensor:
    """(positions, width), NaN past the end."""
    out = real.new_full((positions, real.shape[1]), math.nan)
    out[: len(real)] = real
    return out
