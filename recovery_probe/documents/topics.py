"""The documents that are built in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recovery_probe.documents.source import Source, Text


@dataclass
class PythonTopics(Source):
    """The language reference that comes with Python (what `help("assert")` shows)."""

    name = "python-topics"

    def read(self, address: str) -> Iterator[Text]:
        self.alone(address)
        return python_topics()


def python_topics() -> Iterator[Text]:
    """Every topic, in the order of Python's own table."""
    from pydoc_data.topics import topics

    return (Text(name, text) for name, text in topics.items())
