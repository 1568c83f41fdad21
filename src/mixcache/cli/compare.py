"""`mixcache compare`: what changed between two benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli.terminal import told_errors


def compare(
    before: Annotated[Path, typer.Argument(help="results.json of one run.")],
    after: Annotated[Path, typer.Argument(help="results.json of another, of the same case.")],
) -> None:
    """Says what changed between two benchmarks beyond noise; exit code 1 if it is a loss."""
    from mixcache.bench.compare import compare as changes_of
    from mixcache.bench.results import load

    with told_errors():
        first, second = load(before), load(after)
        changes = changes_of(first, second)
    for name in ("versions", "machine"):
        if first.get(name) != second.get(name):
            typer.echo(f"note      {name} differ: {first.get(name)} and {second.get(name)}", err=True)
    for change in changes:
        kind = "LOSS  " if change.is_loss else "change"
        typer.echo(f"{kind}    {change.method}: {change.what}: {change.before} -> {change.after}")
    if not changes:
        typer.echo("no change beyond noise")
    if any(change.is_loss for change in changes):
        raise typer.Exit(1)
