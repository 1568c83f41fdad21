"""`mixcache web`: a page to try it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options
from mixcache.cli.terminal import quiet, told_errors


def web(
    model: options.Model = "shapes-wan",
    profile: options.ProfileFile = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 opens the page to others.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
) -> None:
    """Opens a page in the browser: plain and cached clips side by side (pip install 'mixcache[web]')."""
    from mixcache.web.page import build, check_port, gradio, is_private

    with told_errors(), tempfile.TemporaryDirectory(prefix="mixcache-web-") as folder:
        gradio()
        check_port(host, port)
        quiet()
        from mixcache.web.studio import Studio

        own = None if profile is None else str(profile)
        page = build(Studio(model, Path(folder), profile=own, dtype=dtype, device=device))
        page.launch(server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, allowed_paths=[folder])
        typer.echo(f"page      http://{host}:{port} (Ctrl-C ends it)")
        if not is_private(host):
            typer.echo("warning   open to others: whoever reaches this machine can generate on it", err=True)
        page.block_thread()
