"""What is said on the terminal: errors, progress, and nothing of the libraries' own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress


def fail(message: object) -> NoReturn:
    """One line on standard error, exit code 2."""
    typer.echo(f"mixcache: {str(message).strip()}", err=True)
    raise typer.Exit(2)


def quiet() -> None:
    """Keeps the libraries' own chatter off the terminal, and the hub out of reach."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def progress_display() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=not sys.stdout.isatty())


def counted(counts: Mapping[str, int]) -> str:
    """`{"compute": 20, "step": 30}` as "20 compute, 30 step"."""
    return ", ".join(f"{number} {granularity}" for granularity, number in counts.items())
