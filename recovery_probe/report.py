"""One self-contained HTML page: what was found, with its null and blind spot beside it."""

from __future__ import annotations

import base64
import functools
from importlib import resources
from typing import Any

import jinja2

from recovery_probe import config
from recovery_probe.run import Run


def html(run: Run, summary: dict[str, Any]) -> str:
    """The page for a run, from its `summary` and the figures that lie in `run.path/analyses`.

    Nothing on it is fetched from elsewhere, and every text of a document is escaped.
    """
    analyses = [
        {
            **about,
            "figure": _inline(run, name),
            "rows": list(_rows(summary[name])),
        }
        for name, about in summary["analyses"].items()
    ]
    record = run.record
    held_out = record.held_out.values
    documents = [
        {"name": str(name), "tokens": int(length), "digest": str(digest)[:12], "excerpt": str(text)}
        | {"held_out": bool(held)}
        for name, length, digest, text, held in zip(
            record.name.values,
            record.length.values,
            record.digest.values,
            record.excerpt.values,
            held_out,
            strict=True,
        )
    ]
    return _template().render(
        run=run,
        title=run.path.resolve().name,
        summary=run.summary(),
        analyses=analyses,
        documents=documents,
        settings=config.to_toml(run.config),
        provenance=run.provenance,
    )


@functools.cache
def _template() -> jinja2.Template:
    text = (resources.files("recovery_probe") / "report.html.jinja").read_text(encoding="utf-8")
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return env.from_string(text)


def _inline(run: Run, name: str) -> str:
    """The figure as a data address. As an image, its ids cannot clash with another figure's."""
    svg = (run.path / "analyses" / f"{name}.svg").read_bytes()
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _rows(value: Any, prefix: str = "") -> Any:
    """(dotted name, text) of every number in a summary."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "verdict":
                yield from _rows(inner, f"{prefix} › {key}" if prefix else str(key))
    else:
        yield prefix.replace("_", " "), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        parts = [_text(v) for v in value]
        return (
            f"[{', '.join(parts)}]"
            if all(isinstance(v, float) for v in value)
            else ",  ".join(parts)
        )
    if isinstance(value, dict):
        return "; ".join(f"{v}: {k}" for k, v in value.items()) or "–"
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(value)
