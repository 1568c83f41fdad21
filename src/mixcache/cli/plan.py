"""`mixcache plan`: which steps are expected to be computed, at each speed-up."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from mixcache.cli import options
from mixcache.cli.terminal import quiet, told_errors


def plan(
    model: options.Model = "shapes-wan",
    profile: options.ProfileFile = None,
    speedup: options.Speedup = None,
    quality: options.Quality = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Denoising steps.")] = None,
) -> None:
    """Prints which steps policy hold is expected to compute: for what is wished, and for other speed-ups."""
    with told_errors():
        config = options.parse_config("hold", None, speedup=speedup, quality=quality, profile=profile)
    quiet()
    from mixcache.generation import open_model
    from mixcache.hosts.diffusers.attachment import enable
    from mixcache.hosts.diffusers.levels import levels_of_steps
    from mixcache.policies import Hold
    from mixcache.profiles import ProfileError
    from mixcache.report.frontier import foretold, frontier_rows

    with told_errors():
        pipeline, arguments = open_model(model)
        with enable(pipeline, config) as handle:
            policy = handle.policy.policy
        if not isinstance(policy, Hold):
            raise TypeError("only policy hold can be foretold")
        count = steps or arguments.get("num_inference_steps", 50)
        sigmas = [*levels_of_steps(pipeline.scheduler, count), 0.0]
        source = "the prior of the built-in models" if policy.profile is None else f"profile of {policy.profile.model}"
        typer.echo(f"from      {source}; a run goes by what it sees itself")
        foreseen = foretold(policy, sigmas, policy.learnt.way)
        typer.echo(f"schedule  {foreseen}")
        typer.echo("          # compute, s step")
        with contextlib.suppress(ProfileError):  # it knows no PSNR, or none of such an error
            if policy.profile is not None:
                told = policy.profile.foretold(policy.limit_expected(count), count)
                typer.echo(f"quality   {told}, at the limit with which it begins")
        typer.echo("frontier")
        for row in frontier_rows(sigmas, policy):
            typer.echo(f"  {row}")
