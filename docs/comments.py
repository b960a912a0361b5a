"""For the site: the comment above a setting, or behind it, is what the API's pages say of it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives attributes that have no docstring the comment above them, or behind them."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        file = attr.filepath
        in_class = isinstance(attr.parent, griffe.Class)
        if attr.docstring or not attr.lineno or not in_class or isinstance(file, list):
            return
        lines = attr.lines_collection[file]
        behind = re.search(r"  # (.+)$", lines[(attr.endlineno or attr.lineno) - 1])
        above: list[str] = [behind[1]] if behind else []
        for line in reversed(lines[: attr.lineno - 1]):
            if behind or not line.lstrip().startswith("# "):
                break
            above.insert(0, line.lstrip()[2:])
        if above:
            plain = re.sub(r"([][<*])", r"\\\1", " ".join(above))  # no Markdown
            attr.docstring = griffe.Docstring(plain, parent=attr)
