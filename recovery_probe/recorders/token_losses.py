"""The loss of every token of every document, as evaluations find it."""

from __future__ import annotations

import numpy as np

from recovery_probe.recorders import EPISODE, Array, Episode, Layout, Recorder, Rows, RunInfo


class TokenLosses(Recorder):
    """`loss` (episodes_done, document, position), nats: of the token at each position, given those
    before it; NaN at position 0 and past a document's end. Its mean over positions is the run's
    `losses`. `token` (document, position): each token as the tokenizer writes it, empty past a
    document's end."""

    name = "token_losses"

    def start(self, run: RunInfo) -> Layout:
        documents, positions = run.tokens.shape
        pieces = np.full((documents, positions), "", dtype=object)
        for row, tokens, length in zip(pieces, run.tokens.tolist(), run.lengths, strict=True):
            texts = run.model.tokenizer.convert_ids_to_tokens(tokens[:length])
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
            {EPISODE: run.settings.token_losses.every},
        )

    def after_episode(self, episode: Episode) -> Rows:
        return {"loss": episode.token_losses.half()}
