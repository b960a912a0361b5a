"""The loss of every token of every document, as evaluations find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recovery_probe.errors import InputError
from recovery_probe.record.layout import EPISODE, Array
from recovery_probe.recorders import Episode, Layout, Recorder, Rows

if TYPE_CHECKING:
    from recovery_probe.training import Training


@dataclass
class TokenLosses(Recorder):
    """`loss` (episodes_done, document, position), nats: of the token at each position, given those
    before it; NaN at position 0 and past a document's end. Its mean over positions is the run's
    `losses`. `token` (document, position): each token as the tokenizer writes it, empty past a
    document's end."""

    name = "token_losses"

    # episode, N episodes or epoch
    every: str = "episode"

    def start(self, training: Training) -> Layout:
        inputs, tokenizer = training.documents.inputs, training.model.tokenizer
        if "tokens" not in inputs:
            raise InputError("token_losses: documents without tokens; --no-record token_losses")
        documents, positions = inputs["tokens"].shape
        pieces = np.full((documents, positions), "", dtype=object)
        rows = zip(pieces, inputs["tokens"].tolist(), training.documents.lengths, strict=True)
        for row, tokens, length in rows:
            texts = tokenizer.convert_ids_to_tokens(tokens[:length])
            # Without the lone surrogates that UTF-8 cannot hold.
            row[:length] = [str(t or "").encode("utf-8", "replace").decode("utf-8") for t in texts]
        loss = Array(
            EPISODE,
            ("document", "position"),
            (documents, positions),
            "cross-entropy of the token at each position given those before it; float16: rounded "
            "by 1 in 2048 at most, 0.004 nats between 8 and 16",
            "nats",
            "float16",
        )
        return Layout(
            {"loss": loss},
            {"token": (("document", "position"), pieces.astype(str))},
            {EPISODE: self.every},
        )

    def after_episode(self, episode: Episode) -> Rows:
        return {"loss": episode.token_losses.half()}
