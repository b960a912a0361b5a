"""What the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    word, known = word.replace("learning_rate", "lr"), list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # the last part may be right: `lr` of `optimizer.lr`
        last = {name.rpartition(".")[2]: name for name in known}
        close = [last[n] for n in difflib.get_close_matches(word, list(last), n=1, cutoff=0.7)]
    return f"; did you mean {close[0]!r}?" if close else ""
