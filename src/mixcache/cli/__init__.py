"""The command line: few verbs, each one call into the library. An error is one line on stderr and exit code 2.

A file for each verb; what they share is in `options.py`, `outputs.py` and `terminal.py`. What is heavy is imported when
a verb runs.
"""

from __future__ import annotations

import typer

from mixcache.cli import batch, bench, calibrate, compare, demo, generate, models, plan, web

__all__ = ["app", "main"]

app = typer.Typer(
    help="Makes video diffusion transformers faster by caching what is safe to cache at each step.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    demo.demo,
    generate.generate,
    batch.batch,
    calibrate.calibrate,
    bench.bench,
    compare.compare,
    plan.plan,
    models.models,
    web.web,
):
    app.command()(verb)


def main() -> None:
    """Entry point of `mixcache`."""
    app()
