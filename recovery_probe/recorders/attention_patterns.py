"""Entropy of the training document's attention, by head; the patterns themselves on request."""

from __future__ import annotations

import torch
from torch import Tensor

from recovery_probe.recorders import STEP, Array, Hook, Layout, Recorder, Rows, RunInfo, Step


class AttentionPatterns(Recorder):
    """`entropy` (step, block, head), nats: mean over the real query positions of the entropy of
    each one's pattern. `pattern` (step, block, head, query, key), with
    `attention_patterns.patterns`."""

    name = "attention_patterns"

    def start(self, run: RunInfo) -> Layout:
        wanted, bridge = run.settings.attention_patterns, run.model.bridge
        blocks, heads, positions = len(bridge.blocks), bridge.cfg.n_heads, run.tokens.shape[1]
        self.patterns, self.blocks = wanted.patterns, blocks
        arrays = {
            "entropy": Array(
                STEP, ("block", "head"), (blocks, heads), "mean entropy of attention", "nats"
            )
        }
        if wanted.patterns:
            arrays["pattern"] = Array(
                STEP,
                ("block", "head", "query", "key"),
                (blocks, heads, positions, positions),
                "attention pattern of the training document",
                dtype="float16",
            )
        points = [f"blocks.{i}.attn.hook_pattern" for i in range(blocks)]
        self.block = {point: i for i, point in enumerate(points)}
        hooks = tuple(Hook(point, self.training) for point in points)
        return Layout(arrays, every={STEP: wanted.every}, hooks=hooks)

    def training(self, pattern: Tensor, *, hook: object, moment: Step) -> Rows:
        block = self.block[str(getattr(hook, "name", ""))]
        if block == 0:
            self.seen: list[Tensor] = []
            self.kept: list[Tensor] = []
        p = pattern.detach()[0]  # (head, query, key)
        self.seen.append(torch.special.entr(p[:, : moment.length].float()).sum(-1).mean(-1))
        if self.patterns:
            self.kept.append(p.half())
        if block < self.blocks - 1:
            return None
        rows = {"entropy": torch.stack(self.seen)}
        return {**rows, "pattern": torch.stack(self.kept)} if self.patterns else rows
