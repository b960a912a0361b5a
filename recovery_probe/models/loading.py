"""Settings -> a network ready to train. That what is trained is the network that was loaded, and
can be saved, is tried at every load."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from recovery_probe.errors import InputError
from recovery_probe.models import attention, bridge, init, sources, text
from recovery_probe.models.bypass import Bypass
from recovery_probe.models.devices import lent_generators, pick_device
from recovery_probe.models.model import Model
from recovery_probe.models.sources import name_of, refused
from recovery_probe.models.text import Inputs
from recovery_probe.seeds import torch_seed
from recovery_probe.settings import Model as ModelSettings
from recovery_probe.settings import Settings

# Largest difference of logits, relative to the largest logit, that is put down to rounding. (Some
# architectures turn and normalise in float32 whatever the weights are.)
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1e-2}


def load(settings: Settings) -> Model:
    """The model of these settings, on its device, with its initial weights, in evaluation mode.

    Raises `InputError` when the source cannot be read, the settings do not fit the model, or the
    bridge would train another network than the one that was loaded.
    """
    # Read when cuBLAS starts, which the first pass on a GPU does: deterministic products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = pick_device(settings.device)
    # Libraries draw weights from torch's global generator: lend it our seed, and put it back.
    with lent_generators(torch_seed(settings.seed.weights, "weights"), device):
        hf_model, tokenizer = sources.load(settings.model)
        context = getattr(hf_model.config, "max_position_embeddings", None)
        if context and settings.documents.tokens > context:
            name = (
                settings.model.architecture
                if settings.model.source == "random"
                else settings.model.source
            )
            raise InputError(
                f"documents.tokens = {settings.documents.tokens} is more than the {context} "
                f"positions that {name} reads"
            )
        with refused(f"{name_of(settings.model)} cannot be had on {device}"):
            hf_model.to(device)
        model = _bridge(hf_model, tokenizer, settings)
    fresh = settings.model.source == "random" or settings.model.weights == "drawn"
    if fresh and settings.model.init != "library":
        seed = torch_seed(settings.seed.weights, "weights")
        about = hf_model.config.get_text_config()
        init.draw(model.parameters, settings.model.init, about, seed)
    return model


def _bridge(hf_model: Any, tokenizer: Any, settings: Settings) -> Model:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture = type(hf_model).__name__
    tensors = _once(hf_model.state_dict(keep_vars=True).items())
    device = hf_model.device
    probe = text.probe(min(16, settings.documents.tokens), device)
    level = logging.getLogger().level
    try:
        with refused(f"{name_of(settings.model)} cannot be run"):
            plain = _training_logits(hf_model.train, lambda: text.logits(hf_model, probe), device)
        with refused(f"{name_of(settings.model)}: TransformerLens cannot bridge {architecture}"):
            # Not boot_transformers: that one looks the tokenizer up on the hub.
            lens = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
            lens.tokenizer = tokenizer
            if settings.model.attention != "eager":
                hf_model.set_attn_implementation(
                    settings.model.attention
                )  # TransformerLens takes eager
                attention.leave_to_hugging_face(lens)
            modules = {id(m): m for top in (lens, hf_model) for m in top.modules()}
            lens.train(False)
            live = bridge.live_parameters(lens, probe)
            model = Model(lens, tokenizer, live, tensors, tuple(modules.values()), Bypass(lens))
            bridged = _training_logits(model.train, lambda: text.logits(lens, probe), device)
            direct = _training_logits(model.train, lambda: model.logits(probe), device)
            if not torch.equal(bridged, direct):  # then every pass takes the bridge's own way
                model.bypass.places.clear()
            _check_faithful(model, plain, bridged, probe, settings.model)
            _check_saved(model, settings.model)
    finally:
        logging.getLogger().setLevel(level)
    return model


@torch.no_grad()
def _training_logits(
    train: Callable[[bool], Any], logits: Callable[[], Tensor], device: torch.device
) -> Tensor:
    """(1, C, vocabulary): what a network gives in training mode, under a seed of its own."""
    train(True)
    with lent_generators(0, device):
        found = logits()
    train(False)
    return found


@torch.no_grad()
def _check_faithful(
    model: Model, plain: Tensor, bridged: Tensor, probe: Inputs, settings: ModelSettings
) -> None:
    """Raise `InputError` unless the bridge gives transformers' own logits in training mode, under
    the same seed, and no position sees a later one. `plain` and `bridged`: (1, C, vocabulary)."""
    if (plain - bridged).abs().max() > ROUNDING[plain.dtype] * plain.abs().max():
        config = model.bridge.original_model.config
        drops = [f"{name} = {p:g}" for name, p in sources.probabilities(config).items() if p]
        raise InputError(
            f"{name_of(settings)}: in training, TransformerLens gives other logits than "
            "transformers"
            + (f"; take the dropout away ({', '.join(drops)}): --model.dropout 0" if drops else "")
        )
    twins, half = text.twins(probe)
    given, changed = model.logits(twins)[:, :half]
    # The mean, as rounding moves few: in bfloat16 a step is as large as what a later token does.
    if (given - changed).abs().mean() > 0.1 * ROUNDING[plain.dtype] * given.abs().mean():
        raise InputError(
            f"{name_of(settings)}: not a causal model: its positions see later ones, so that the "
            "next token is no prediction"
        )


def _check_saved(model: Model, settings: ModelSettings) -> None:
    """Raise `InputError` when a weight that is trained would not be in what `save` writes: it is
    one of the Hugging Face tensors, a part of one in the same memory (Phi-3's gate), or rejoined.
    """
    saved = {t.untyped_storage().data_ptr() for t in model._hf_tensors.values()}
    for joint in bridge.joint_attentions(model.bridge):
        for part in bridge.split_parts(joint):
            saved |= {p.untyped_storage().data_ptr() for p in part.parameters()}
    memory = {name: p.untyped_storage().data_ptr() for name, p in model.parameters.items()}
    if lost := [name for name, place in memory.items() if place not in saved]:
        raise InputError(
            f"{name_of(settings)}: its trained weights could not be saved under Hugging Face "
            "names: " + ", ".join(lost[:3])
        )


def _once(items: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tied tensors under their first name only, as safetensors wants them."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in items:
        seen.setdefault(id(tensor), (name, tensor))
    return dict(seen.values())
