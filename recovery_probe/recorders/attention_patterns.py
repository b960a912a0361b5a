"""Entropy of the training document's attention, by head; the patterns themselves on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recovery_probe.errors import InputError
from recovery_probe.record.layout import STEP, Array
from recovery_probe.recorders import Hook, Layout, Recorder, Rows, Step

if TYPE_CHECKING:
    from torch import Tensor

    from recovery_probe.training import Training


@dataclass
class AttentionPatterns(Recorder):
    """`entropy` (step, block, head), nats: mean over the real query positions of the entropy of
    each one's pattern. `pattern` (step, block, head, query, key), with
    `attention_patterns.patterns`."""

    name = "attention_patterns"

    # step, N steps, episode (its first step) or epoch
    every: str = "step"
    # keep the patterns too, not their entropy alone
    patterns: bool = False

    def start(self, training: Training) -> Layout:
        from recovery_probe.hooking import shapes_at
        from recovery_probe.recorders.points import Points

        bridge = training.model.bridge
        blocks, positions = len(bridge.blocks), training.documents.mask.shape[1]
        points = [f"blocks.{i}.attn.hook_pattern" for i in range(blocks)]
        shapes = {shape[1:] for shape in shapes_at(training, points).values()}
        if not all(s[1:] == (positions, positions) for s in shapes) or len(shapes) > 1:
            raise InputError(
                f"attention_patterns: patterns of shape {sorted(shapes)} are not one "
                f"(head, {positions}, {positions}) for all blocks; leave it out: "
                "--no-record attention_patterns"
            )
        heads = next(iter(shapes), (bridge.cfg.n_heads,))[0]
        self.entropy, self.kept = Points(points), Points(points)
        arrays = {
            "entropy": Array(
                STEP, ("block", "head"), (blocks, heads), "mean entropy of attention", "nats"
            )
        }
        if self.patterns:
            arrays["pattern"] = Array(
                STEP,
                ("block", "head", "query", "key"),
                (blocks, heads, positions, positions),
                "attention pattern of the training document",
                dtype="float16",
            )
        hooks = tuple(Hook(point, self.watch) for point in points)
        return Layout(arrays, every={STEP: self.every}, hooks=hooks)

    def watch(self, pattern: Tensor, *, hook: Any, moment: Step) -> None:
        import torch
        from einops import reduce

        p = pattern.detach()[0]  # (head, query, key)
        terms = torch.special.entr(p[:, : moment.length].float())
        entropy = reduce(terms, "head query key -> head query", "sum")
        self.entropy.put(hook.name, entropy.mean(-1))
        if self.patterns:
            self.kept.put(hook.name, p.half())

    def after_backward(self, step: Step) -> Rows:
        return {**(self.entropy.rows("entropy") or {}), **(self.kept.rows("pattern") or {})}
