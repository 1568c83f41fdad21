"""`mixcache models`: what is supported."""

from __future__ import annotations

import typer


def models() -> None:
    """Lists the supported transformers and pipelines, and the built-in models."""
    from mixcache.hosts.diffusers.rows import rows_as_table
    from mixcache.zoo import BUILT_IN

    rows = rows_as_table()
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # plain: a table of rich is cut to the width of the terminal, and to 80 columns without one
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"built in: {', '.join(BUILT_IN)}")
