"""Lee's 300 news articles, which gensim carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recovery_probe.documents.reading import lines
from recovery_probe.documents.source import Source, Text
from recovery_probe.errors import InputError


@dataclass
class Lee(Source):
    """One article a line, from gensim's own test data."""

    name = "lee"

    def read(self, address: str) -> Iterator[Text]:
        self.alone(address)
        # Only the file is wanted: importing gensim takes seconds.
        spec = importlib.util.find_spec("gensim")
        if spec is None or spec.origin is None:
            raise InputError(
                'documents.source = "lee" needs gensim, which carries it: '
                'pip install -c constraints.txt ".[lee]"'
            )
        return lines(Path(spec.origin).parent / "test" / "test_data" / "lee_background.cor")
