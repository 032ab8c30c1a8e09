"""Tables of measured numbers, as text."""

from __future__ import annotations

from typing import Any


def number(entry: dict[str, Any] | None) -> str:
    """A measured value with its standard error, as tables show it."""
    if entry is None or entry["value"] is None:
        return "-"
    error = f" ± {entry['stderr']:.2g}" if entry.get("stderr") else ""
    return f"{entry['value']:.4g}{error}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns are padded, so that it reads well in a terminal too."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def metrics_table(columns: dict[str, dict[str, Any]]) -> str:
    """Metrics of several models side by side: model -> metric -> {value, stderr, count, repeats, direction}."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    first = {name: next(m[name] for m in columns.values() if name in m) for name in names}
    arrows = {"lower": "lower is better", "higher": "higher is better", "neither": "descriptive"}
    header = ["metric", *columns, "samples", "draws", ""]
    rows = [
        [n, *[number(m.get(n)) for m in columns.values()], *_counts(first[n]), arrows[first[n]["direction"]]]
        for n in names
    ]
    return markdown_table(header, rows)


def _counts(entry: dict[str, Any]) -> list[str]:
    """How many samples a number rests on, and how many noise draws."""
    return [str(entry["count"]), str(entry.get("repeats", "-"))]
