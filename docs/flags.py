"""A flag on a page of the site stays in one piece: browsers break a line after any hyphen."""

from __future__ import annotations

import re
from typing import Any

FLAG = re.compile(r"(?<![-\w!<])--[a-z][\w.-]*")


def on_page_content(html: str, **_: Any) -> str:
    """Every flag in code, marked for the style sheet."""
    return re.sub(
        r"<code[ >].*?</code>",
        lambda code: FLAG.sub(r'<span class="flag">\g<0></span>', code[0]),
        html,
        flags=re.DOTALL,
    )
