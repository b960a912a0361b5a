"""`Model`: a network ready to train, what it computes and what it saves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from recovery_probe.errors import InputError
from recovery_probe.models import bridge, text
from recovery_probe.models.bypass import Bypass
from recovery_probe.models.text import Inputs


@dataclass(frozen=True)
class Model:
    """A network ready to train."""

    bridge: Any  # transformer_lens.model_bridge.TransformerBridge, untyped upstream
    tokenizer: Any
    # TransformerLens name (blocks.3.attn.q.weight) -> what the forward pass uses, each once.
    parameters: dict[str, Parameter]
    # Hugging Face name -> tensor, as they were before bridging; joint matrices are stale.
    _hf_tensors: dict[str, Tensor]
    _modules: tuple[nn.Module, ...]  # every module of the bridge, once
    bypass: Bypass  # of what nobody watches

    def train(self, training: bool = True) -> None:
        """Training mode (dropout), or evaluation mode. As `bridge.train(training)`, which takes
        5% of a small model's episode: it reaches every module by all of its paths."""
        for module in self._modules:
            module.training = training

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def tokenize(self, text: str) -> list[int]:
        """Token ids as the model's own tokenizer gives them, with the special tokens that it adds
        and none that the text spells out. Raises `InputError` for one without an embedding."""
        ids = list(self.tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"])
        known = self.vocabulary
        if ids and max(ids) >= known:
            raise InputError(
                f"model.source: its tokenizer makes token {max(ids)}, and its network has "
                f"embeddings for {known} tokens; they do not belong together"
            )
        return ids

    @property
    def vocabulary(self) -> int:
        """How many tokens there is an embedding of."""
        return len(self.parameters["embed.weight"])

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Meanwhile passes compute with these tensors, under the names of `parameters`, in place of
        what those hold: with dual numbers, say, or the weights of another time."""
        instead = {id(self.parameters[name]): tensor for name, tensor in weights.items()}
        places = [
            (module._parameters, name, parameter)
            for module in self._modules
            for name, parameter in module._parameters.items()
            if id(parameter) in instead
        ]
        try:
            for holder, name, parameter in places:
                holder[name] = cast(Parameter, instead[id(parameter)])
            yield
        finally:
            for holder, name, parameter in places:
                holder[name] = parameter

    def logits(self, inputs: Inputs) -> Tensor:
        """(documents, C, vocabulary), in the network's own number format."""
        with self.bypass():
            return text.logits(self.bridge, inputs)

    def token_losses(self, inputs: Inputs, shown: Inputs | None = None) -> Tensor:
        """(documents, C): cross-entropy of the token at each position given those before it,
        nats; 0 at position 0 and where there is no token. Of the mode the model is in. `shown`:
        what the network is given instead."""
        return text.token_losses(self.logits(inputs if shown is None else shown), inputs)

    def losses(self, inputs: Inputs, shown: Inputs | None = None) -> Tensor:
        """(documents,): the mean of `token_losses` over a document's tokens but the first, nats."""
        return self.mean_losses(self.token_losses(inputs, shown), inputs)

    def mean_losses(self, token_losses: Tensor, inputs: Inputs) -> Tensor:
        """(documents,): their mean over a document's tokens but the first, nats."""
        return text.means(token_losses, inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as `save` writes them."""
        return sum(t.numel() * t.element_size() for t in self._hf_tensors.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under their Hugging Face names, joint matrices rebuilt from the split
        ones that were trained: what a plain Hugging Face model loads."""
        joined = bridge.rejoined(self.bridge)
        return {name: joined.get(id(t), t.detach()) for name, t in self._hf_tensors.items()}

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` and `model.source` read."""
        self.save_weights(folder)
        self.bridge.original_model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def digest(self) -> str:
        """SHA-256 of names, number formats, shapes and bytes of all parameters: the same wherever
        they lie, and however they were read."""
        found = hashlib.sha256()
        for name, parameter in sorted(self.parameters.items()):
            found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
            values = parameter.detach().cpu().contiguous()
            found.update(values.flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def save_weights(self, folder: Path) -> None:
        """Write what changes of it in training."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
