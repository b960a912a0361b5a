"""Our trainer against a bare PyTorch loop on the same Hugging Face model.

    python tests/benchmarks/bench_loop.py [--shape quickstart large] [--rounds 9] [--profile]

One process; the loops take turns, three episodes each, round after round, with an evaluation of
all T + H documents first and after each episode. The floor is the bare loop with eager
attention, which the bridge forces; SDPA is printed beside it. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import documents, models
from recovery_probe.record.writer import Writer
from recovery_probe.recorders import RunInfo
from recovery_probe.recorders.recording import Recording
from recovery_probe.schedules import document_of_episode
from recovery_probe.sketch import ModuleSketches
from recovery_probe.train import batch, train
from recovery_probe.train.progress import Progress

SHAPES = {
    "quickstart": {"control": "none"},
    "large": {
        "control": "none",
        "model": {"width": 576, "depth": 30, "heads": 9},
        "documents": {"count": 4, "held_out": 1, "tokens": 128, "min_tokens": 128},
    },
}
PLAN = [0, 1, 2]
Prepare = Callable[[list[int]], Callable[[], object]]  # documents to train on -> what is timed


def bare(settings: rp.Settings, tokens: torch.Tensor, weights: Path, attention: str) -> Prepare:
    """The same arithmetic without us."""
    model = AutoModelForCausalLM.from_pretrained(weights, attn_implementation=attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.optimizer.lr, fused=True)

    def losses(batch: torch.Tensor) -> torch.Tensor:
        logits = model(batch, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        return each.view(len(batch), -1).mean(1)

    def evaluate() -> list[float]:
        model.eval()
        with torch.no_grad():
            return torch.cat([losses(b) for b in tokens.split(settings.eval_batch)]).tolist()

    def run(plan: list[int]) -> None:
        evaluate()
        for document in plan:
            model.train()
            for _ in range(settings.steps):
                optimizer.zero_grad()
                losses(tokens[document : document + 1])[0].backward()
                optimizer.step()
            evaluate()

    return lambda plan: lambda: run(plan)


def ours(
    settings: rp.Settings, model: models.Model, docs: documents.Documents, folder: Path
) -> Prepare:
    """The package's own loop, losses alone."""
    names = itertools.count()
    tokens, targets = batch(docs, model.device)

    def prepare(plan: list[int]) -> Callable[[], None]:
        schedule = np.array(plan, dtype=np.int32)
        out = folder / str(next(names))
        writer = Writer.create(out, settings, docs, document_of_episode(settings), provenance={})
        writer.put_in_place()
        sketches = ModuleSketches(model.parameters, settings.sketch)
        info = RunInfo(settings, model, tokens, targets, docs.lengths, schedule, out, sketches)
        progress = Progress("", len(plan), per_epoch=10**9)
        return lambda: train(info, Recording([], info), writer, progress)

    return prepare


def measure(name: str, rounds: int, profile: bool) -> None:
    # A small step: hours on three documents must not end in losses and gradients of 0.
    settings = rp.preset("quickstart", optimizer={"lr": 1e-6}, **SHAPES[name])
    model = models.load(settings)
    docs = documents.load(settings, model.tokenize)
    times: dict[str, list[float]] = {"ours": [], "eager": [], "sdpa": []}
    with tempfile.TemporaryDirectory() as aside:
        model.save(Path(aside) / "weights")
        loops: dict[str, Prepare] = {"ours": ours(settings, model, docs, Path(aside))}
        for attention in ("eager", "sdpa"):
            tokens = torch.tensor(docs.tokens)
            loops[attention] = bare(settings, tokens, Path(aside) / "weights", attention)
        for turn in range(rounds + 1):  # the first warms up
            for loop, prepare in loops.items():
                timed = prepare(PLAN)
                start = time.perf_counter()
                timed()
                if turn:
                    times[loop].append(time.perf_counter() - start)
        if profile:
            timed = loops["ours"](PLAN)
            with cProfile.Profile() as seen:
                timed()
            pstats.Stats(seen).sort_stats("tottime").print_stats(25)
    print(
        f"{name}: {settings.model.depth} blocks, {settings.model.width} wide, "
        f"{docs.tokens.shape[1]} tokens, {len(docs.tokens)} documents, M = {settings.steps}, "
        f"{torch.get_num_threads()} threads, {rounds} rounds"
    )
    medians = {loop: statistics.median(seconds) for loop, seconds in times.items()}
    for loop, seconds in times.items():
        print(
            f"  {loop:<6} {medians[loop] * 1e3:9.1f} ms "
            f"({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f})"
        )
    for loop in ("eager", "sdpa"):
        print(f"  ours / {loop}: {medians['ours'] / medians[loop]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="where our loop's time goes")
    arguments = parser.parse_args()
    for shape in arguments.shape:
        measure(shape, arguments.rounds, arguments.profile)
