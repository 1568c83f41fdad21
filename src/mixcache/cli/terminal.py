"""What is said on the terminal: errors, progress, and nothing of the libraries' own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress


@contextlib.contextmanager
def told_errors(interrupted: str | None = None) -> Iterator[None]:
    """What fails is one line on standard error and exit code 2; Ctrl-C is the line `interrupted` and exit code 130."""
    try:
        yield
    except typer.Exit:
        raise
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError) as error:
        typer.echo(f"mixcache: {str(error).strip()}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        typer.echo(interrupted, err=True)
        raise typer.Exit(130) from None


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
    return Progress(*columns, disable=not sys.stdout.isatty())


def watched(progress: Progress, title: str) -> Callable[[int, int], None]:
    """A new bar, as what is told how many of how many are done."""
    task = progress.add_task(title, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def counted(counts: Mapping[str, int]) -> str:
    """`{"compute": 20, "cfg": 0, "step": 30}` as "20 compute, 30 step"."""
    return ", ".join(f"{number} {granularity}" for granularity, number in counts.items() if number)
