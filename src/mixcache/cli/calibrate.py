"""`mixcache calibrate`: a profile of a model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options
from mixcache.cli.outputs import prepare_file
from mixcache.cli.terminal import progress_display, quiet, told_errors, watched


def calibrate(
    out: Annotated[Path, typer.Option(help="The profile to write; PROFILE.partial is kept until it is done.")],
    model: options.Model = "shapes-wan",
    prompts: options.PromptsFile = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=1000, help="Prompts to take; three clips each.")] = 2,
    steps: Annotated[list[int] | None, typer.Option(min=5, help="Denoising steps; may be repeated.")] = None,
    impacts: Annotated[
        bool, typer.Option("--impacts", help="Measure impacts for policy mixcache too: 8 clips for each granularity.")
    ] = False,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    image: options.ImageFile = None,
    video: options.VideoFile = None,
    negative_prompt: options.NegativePrompt = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    force: options.Force = False,
) -> None:
    """Measures what an error costs in a model's clips, for --quality in dB: three clips for each prompt and number of
    steps. Goes on where it was cut off."""
    with told_errors():
        asked = options.asked_arguments(size, frames, None, guidance, negative_prompt, image, video)
        prepare_file(out, force, ".json")
        given = options.read_prompts(prompts) if prompts else None
    quiet()
    from mixcache.arguments import call_arguments
    from mixcache.calibration import CalibrationConfig, built_in_prompts
    from mixcache.calibration import calibrate as measure
    from mixcache.generation import open_model
    from mixcache.zoo import BUILT_IN

    with told_errors(f"Interrupted; the same command goes on from {out}.partial."):
        pipeline, defaults = open_model(model, dtype=dtype, device=device)
        if given is None and model not in BUILT_IN:
            raise ValueError("--prompts FILE is missing: only the built-in models bring captions of their own")
        arguments = call_arguments(pipeline, defaults, asked)
        config = CalibrationConfig(
            model=model if model in BUILT_IN else Path(model).resolve().name,
            prompts=tuple(given[:num_prompts] if given else built_in_prompts(num_prompts)),
            arguments=arguments,
            impacts=impacts,
            command=shlex.join(["mixcache", *sys.argv[1:]]),
        )
        with progress_display() as progress:
            watch = watched(progress, "clips")
            profile = measure(pipeline, config, out, watch, step_counts=steps or ())
    typer.echo(f"profile   {out}")
    for error, num_steps, psnr in profile.psnrs:
        typer.echo(f"clip      error {error:g}, {num_steps:g} steps: {psnr:.1f} dB")
