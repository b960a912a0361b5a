"""What the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], table: str = "") -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near. `table`: where it stands, which
    is told and not compared: it would make any two words alike."""
    word, known = word.replace("learning_rate", "lr"), list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # the last part may be right: `lr` of `optimizer.lr`
        last = {name.rpartition(".")[2]: name for name in known}
        close = [last[n] for n in difflib.get_close_matches(word, list(last), n=1, cutoff=0.7)]
    dotted = [f"{table}.{name}" if table else name for name in close]
    return f"; did you mean {dotted[0]!r}?" if close else ""
