"""The tokenizer of a model with random weights."""

from __future__ import annotations

import functools
from typing import Any

from recovery_probe.documents.topics import python_topics

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on the built-in documents, all of them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    end = {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(vocabulary)), **end)


@functools.cache  # the runs of a sweep share it
def _trained(vocabulary: int) -> str:
    """As JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((d.text for d in python_topics()), trainer)
    return bpe.to_str()
