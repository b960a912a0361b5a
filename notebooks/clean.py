"""Takes out of notebooks what running them leaves beside what they show: times, counts, and the
version of Python. Outputs stay.

    jupyter execute --inplace notebooks/*.ipynb && python notebooks/clean.py notebooks/*.ipynb
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def cleaned(text: str) -> str:
    """A notebook as it is committed."""
    notebook = json.loads(text)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        for counted in (cell, *cell.get("outputs", ())):
            if "execution_count" in counted:
                counted["execution_count"] = None
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        file = Path(name)
        file.write_text(cleaned(file.read_text("utf-8")), "utf-8")
