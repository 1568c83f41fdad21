"""Results as a GitHub Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixcache.report.figures import plain_text


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """`rows` as a GitHub Markdown table, without a newline at the end.

    `columns` are the keys to show, in order; by default every key of every row, in the order of first appearance.
    Floats get three significant digits; None, and a key that a row lacks, is an en dash. A column that holds nothing
    but numbers is right-aligned. Without columns (no rows and none named) the text is empty.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    lines = [_line(columns), _line(["---:" if _is_numeric(rows, column) else "---" for column in columns])]
    lines.extend(_line([plain_text(row.get(column)) for column in columns]) for row in rows)
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _is_numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
