"""`mixcache plan`: the schedule for what is wanted, and what else there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixcache.cli import options
from mixcache.cli.outputs import prepare_file
from mixcache.cli.terminal import quiet, told_errors


def plan(
    model: options.Model = "shapes-wan",
    profile: options.ProfileFile = None,
    speedup: options.Speedup = None,
    quality: options.Quality = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Denoising steps.")] = None,
    guidance: options.Guidance = None,
    force_profile: Annotated[bool, typer.Option("--force-profile", help="Take a profile of another model.")] = False,
    png: Annotated[Path | None, typer.Option(help="Picture of the frontier to write.")] = None,
    force: options.Force = False,
) -> None:
    """Prints the schedule for a wanted speed-up or quality, what it is expected to give, and what else there is."""
    named = {"speedup": speedup, "quality": quality, "profile": profile, "force_profile": force_profile or None}
    with told_errors():
        config = options.parse_config("planned", None, **named)
        if png:
            prepare_file(png, force, ".png")
    quiet()
    from mixcache.generation import open_model
    from mixcache.hosts.diffusers.attachment import enable
    from mixcache.hosts.diffusers.levels import levels_of_steps
    from mixcache.report.frontier import draw_frontier, frontier_rows, letters

    with told_errors():
        pipeline, arguments = open_model(model)
        with enable(pipeline, config) as handle:
            planner = handle.planner
        assert planner is not None  # the policy is "planned", and `enable` gave it one
        scale = guidance if guidance is not None else arguments.get("guidance_scale", planner.profile.guidance)
        sigmas = planner.profile.levels(steps, lambda count: levels_of_steps(pipeline.scheduler, count))
        plans = planner.frontier(sigmas, scale)
        chosen = planner.chosen(plans)
        if png:
            draw_frontier(plans, chosen, png)
    typer.echo(f"schedule  {letters(chosen.choices)}")
    typer.echo(f"          # compute, s step, g cfg, b block; capitals extrapolate, damped to {chosen.damping:g}")
    typer.echo(
        f"expected  {chosen.speedup:.2f}x of the denoising loop (text encoder and VAE left out), {psnr_text(chosen)}"
    )
    typer.echo("frontier")
    for row in frontier_rows(plans, chosen):
        typer.echo(f"  {row}")
    if png:
        typer.echo(f"picture   {png}")


def psnr_text(chosen: Any) -> str:
    """`PSNR 41.3 dB`, or `identical`."""
    return f"PSNR {chosen.psnr_db:.1f} dB" if chosen.psnr_db != float("inf") else "identical"
