"""Configurations drawn at random, over all settings and those of every plug-in: what the tests do
a dozen times and `stress.py` a thousand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

import recovery_probe as rp
from recovery_probe import config

WIDTH = 16  # the usual one
# Drawn wherever their plug-in is, which would often be refused without.
NEEDED = ("directions", "hooks", "first")


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


SEED = st.integers(0, 3) | some(2**31, 2**64)
EPISODES = some("episode", "2 episodes", "epoch", "9 epochs")
STEPS = EPISODES | some("step", "3 steps")
RATE = some(1e-3, 0.1, 1e30)
DECAY = some(0.0, 0.01)
ADAM = {
    "lr": RATE,
    "betas": some([0.9, 0.999], [0.0, 0.5]),
    "eps": some(1e-8, 1e-3),
    "weight_decay": DECAY,
    "amsgrad": st.booleans(),
}
# Those that every configuration has: few and small.
ALWAYS: dict[str, st.SearchStrategy[Any]] = {
    "epochs": some(1, 1, 2),
    "steps": st.integers(1, 3),
    "documents.source": some("python-topics", "DOCUMENTS.jsonl", "DOCUMENTS.txt"),
    "documents.count": st.integers(2, 4),
    "documents.tokens": st.integers(2, 16),
    "documents.held_out": st.integers(0, 2),
    "model.width": some(WIDTH, WIDTH, WIDTH, 32, 33),
    "model.depth": st.integers(1, 2),
    "model.heads": some(1, 2, 4),
    "model.vocabulary": st.integers(257, 300),
    "optimizer.name": some("sgd", "adam", "adamw"),
    "schedule.kind": some(
        *("cyclic", "cyclic", "shuffled", "partial", "reversed", "palindrome", "interleaved"),
        *("block", "yoked", "fresh", "switch_at", "reverse_at", "gap", "omit", "listed"),
    ),
    "recorders": st.lists(
        some(
            *("token_losses", "residual_stream", "gradients", "weight_deltas"),
            *("document_gradients", "attention_patterns", "allocation", "checkpoints"),
            *("readout", "state_return"),
        ),
        unique=True,
    ),
    "interventions": st.just([])
    | st.lists(
        some("mask", "shuffle_labels", "freeze", "project", "edit"), unique=True, max_size=2
    ),
}
SOMETIMES: dict[str, st.SearchStrategy[Any]] = {
    "seed": SEED,
    "device": some("auto", "cpu"),
    "eval_batch": some(1, 2, 100),
    "threads": some(0, 1),
    "sketch": some(1, 5, 300),
    "documents.min_tokens": some(2, 2, 16, 100),
    "documents.pool": some(2, 20, 20, 10**9),
    "documents.padding": some("masked", "none"),
    "documents.window": some("none", 0, 1, 30),
    "documents.permute": some(0, 1, 10**6),
    "documents.overlap": some(0.0, 0.3, 0.9),
    "model.architecture": some(
        *("gpt_neox", "gpt_neox", "llama", "gpt2", "opt", "qwen3", "gemma2", "bloom", "phi3"),
        *("mixtral", "gptj", "mamba", "bert"),
    ),
    "model.init": some("paper", "library", "normal"),
    "model.mlp_ratio": some(4.0, 0.5, 2.7),
    "model.weights": some("own", "drawn"),
    "model.dropout": some("own", 0, 0.1),
    "model.attention": some("eager", "sdpa"),
    "model.dtype": some("float32", "float64", "bfloat16"),
    "optimizer.reset": some("never", "episode", "epoch"),
    "optimizer.per": some("step", "episode"),
    "optimizer.decay": some("none", "cosine"),
    "outcome.primary": some("matched_fall", "gain", "excess", "score"),
    "outcome.epoch": st.integers(0, 3),
    "outcome.window": some(0.1, 0.9),
    "outcome.smallest": some(0.01, 1.0),
    "outcome.seeds": st.integers(1, 9),
    "outcome.stop": some("fixed", "when “it” is clear"),
}
# Plug-in -> those of its own.
OWN: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "DOCUMENTS.jsonl": {"field": some("text", "text", "text", "title")},
    "shuffled": {"keep_first": st.booleans()},
    "partial": {"first": some(0, 1, 5), "last": some(-1, 1, 2)},
    "interleaved": {"inner": some(1, 2, 9)},
    "block": {"size": some(1, 2, 9)},
    "yoked": {"kept": some(1, 2, 9), "slots": some(0, 0, 2, 3)},
    "fresh": {"fixed": some(1, 2), "new": some(1, 2), "shuffled": st.booleans()},
    "switch_at": {"after": some(1, 2)},
    "reverse_at": {"after": some(1, 2)},
    "gap": {"after": some(1, 2), "size": some(1, 2)},
    "listed": {"documents": st.lists(st.integers(0, 4), max_size=8), "every": some(0, 2)},
    "omit": {"after": some(1, 2), "documents": st.lists(st.integers(0, 4), max_size=2)},
    "sgd": {
        "lr": RATE,
        "momentum": some(0.0, 0.9),
        "dampening": some(0.0, 0.0, 0.5),
        "nesterov": st.booleans(),
        "weight_decay": DECAY,
    },
    "adam": ADAM,
    "adamw": ADAM,
    "token_losses": {"every": EPISODES},
    "residual_stream": {
        "every": STEPS,
        "reduce": some("mean", "last", "all"),
        "focal": some(0, 0, 1, 4),
        "focal_layers": some("last", "all"),
    },
    "gradients": {"every": STEPS},
    "weight_deltas": {"every": STEPS},
    "document_gradients": {"every": EPISODES},
    "allocation": {
        "epochs": st.integers(1, 3),
        "accuracy": some(0.02, 1e-9, 1.0),
        "line": some("episode", "step"),
    },
    "attention_patterns": {"every": STEPS, "patterns": st.booleans()},
    "checkpoints": {"every": EPISODES, "keep": st.integers(0, 2)},
    "mask": {"p": some(0.1, 1.0)},
    "freeze": {
        "embeddings": st.booleans(),
        "first": some(0, 1, 1, 1, 3),
        "last": st.integers(0, 1),
        "modules": st.lists(some("blocks.*.mlp", "ln_final", "unembed", "nothing"), max_size=2),
    },
    "project": {
        "directions": st.just("DIRECTIONS.safetensors"),
        "of": some("gradient", "update"),
        "keep_norm": st.booleans(),
    },
    "edit": {
        "hooks": some(
            *(["EDITS.py:halved@blocks.*.hook_resid_post"], ["EDITS.py:halved@blocks.0.mlp.*"]),
            *([], ["EDITS.py:halved@nowhere"], ["EDITS.py:nothing@blocks.*"]),
        ),
        "during": some("training", "evaluation", "both"),
    },
}
# Those that hang on others, and are refused for that when they are read.
TOGETHER = ("documents.window = ", "documents.overlap = ")
# What few settings can be; none of these is work for minutes.
JUNK = some(
    *(None, True, -1, 0, 1.5, 10**9, 10**19, 10**30, float("nan"), float("inf")),
    *("", "x", "true", "a\0b", "\udcff", [], [1], ["x"], ["gradients", "gradients"], {}, {"x": 1}),
)


def materials(folder: Path) -> None:
    """The files that configurations name: documents, directions, edits."""
    texts = [f"{i} {' '.join(chr(97 + (i * j) % 26) * 3 for j in range(40))}" for i in range(1, 12)]
    (folder / "DOCUMENTS.txt").write_text("\n".join(texts), "utf-8")
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    (folder / "DOCUMENTS.jsonl").write_text(lines, "utf-8")
    (folder / "EDITS.py").write_text("def halved(tensor, *, hook):\n    return tensor / 2\n")
    save_file({"ln_final.weight": torch.ones(1, WIDTH)}, folder / "DIRECTIONS.safetensors")


@st.composite
def configurations(draw: Callable[..., Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Nested settings, and the names of those that were spoilt: given what few settings can be, or
    misspelt. `folder` has the `materials`."""
    flat = draw(st.fixed_dictionaries(ALWAYS, optional=SOMETIMES))
    for part, selector in (("documents", "source"), ("schedule", "kind"), ("optimizer", "name")):
        flat |= draw(own(part, flat[f"{part}.{selector}"]))
    for plugin in (*flat["recorders"], *flat["interventions"]):
        flat |= draw(own(plugin, plugin))
    # As `sgd` says.
    if not flat.get("optimizer.momentum") or flat.get("optimizer.dampening"):
        flat.pop("optimizer.nesterov", None)
    spoilt = []
    for _ in range(draw(some(0, 0, 0, 1, 2))):
        name = draw(some(*sorted({*flat, *(name.partition(".")[0] for name in flat)})))
        if draw(st.booleans()):
            flat[name] = draw(JUNK)
        else:
            place = draw(st.integers(0, len(name) - 1))
            name = name[:place] + draw(some("", "q", name[place] * 2)) + name[place + 1 :]
            flat[name] = draw(some(1, "x"))
        spoilt.append(name)
    return nested(flat, folder), spoilt


def own(table: str, plugin: str) -> st.SearchStrategy[dict[str, Any]]:
    """Of the settings of a plug-in, some, and those that are needed."""
    named = {f"{table}.{name}": values for name, values in OWN.get(plugin, {}).items()}
    needed = {name: values for name, values in named.items() if name.endswith(NEEDED)}
    rest = {name: values for name, values in named.items() if name not in needed}
    return st.fixed_dictionaries(needed, optional=rest)


def nested(flat: dict[str, Any], folder: Path) -> dict[str, Any]:
    """By table; what stands in a table's place is in its place. Files lie in the folder."""
    values: dict[str, Any] = {}
    for name, value in sorted(flat.items()):  # a table's own name comes before those in it
        table, dot, setting = name.partition(".")
        value = _placed(value, folder)
        if not dot:
            values[table] = value
        elif isinstance(inner := values.setdefault(table, {}), dict):
            inner[setting] = value
    return values


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_placed(each, folder) for each in value]
    upper = isinstance(value, str) and re.match(r"DOCUMENTS|DIRECTIONS|EDITS", value)
    return f"{folder}/{value}" if upper else value


def tried(values: dict[str, Any], spoilt: list[str], out: Path) -> str:
    """Train with these settings and say in words how that ended. Raises `AssertionError`, or what
    should not have been raised, unless they are trained, or refused by name with nothing left. What
    failed in training, by name, is kept."""
    try:
        settings = config.from_dict(values)
    except rp.InputError as error:
        said = str(error)
        if not any(name in said for name in (*spoilt, *TOGETHER)):
            raise AssertionError(f"refused, and {spoilt or 'nothing'} is spoilt: {said}") from error
        return "refused when read"
    try:
        run = rp.fit(settings, out)
    except rp.InputError as error:
        if not named(values, str(error)):
            raise AssertionError(f"no setting is named: {error}") from error
        assert not [*out.parent.iterdir()], f"left behind: {[*out.parent.iterdir()]}"
        return "refused when made"
    except rp.Diverged as error:
        if "optimizer.lr" not in str(error):
            raise AssertionError(f"no setting is named: {error}") from error
        assert rp.open_run(out).status == "diverged"
        return "diverged"
    except rp.HookError as error:
        # Only a step tells that what is projected is held fixed by another intervention.
        if "project" not in str(error) or "leave it out of the directions" not in str(error):
            raise
        assert rp.open_run(out).status == "failed"
        return "stopped by an intervention"
    assert run.status == "complete"
    assert np.isfinite(run.losses.values).all()
    assert np.isfinite(run.train_loss.values).all()
    assert run.config == settings
    run.check()
    return "trained"


def named(values: dict[str, Any], message: str) -> bool:
    """Whether a message has the dotted name of a setting, `name = ` or `name: ` of one without a
    dot, or one of the plug-ins."""
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    dotted = {f"{table}.{name}" for table, inner in tables.items() for name in inner}
    plain = {mark for name in values for mark in (f"{name} = ", f"{name}: ")}
    known = {name for name in config.names() if "." in name}
    plugins = {f"{kind[:-1]} {name}" for kind in config.LISTS for name in values[kind]}
    plugins |= {f"--no-record {name}" for name in values["recorders"]}
    return any(name in message for name in dotted | plain | known | plugins)
