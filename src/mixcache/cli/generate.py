"""`mixcache generate`: one clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options
from mixcache.cli.outputs import prepare_file
from mixcache.cli.terminal import counted, progress_display, quiet, told_errors, watched


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    model: options.Model = "shapes-wan",
    policy: options.PolicyName = None,
    speedup: options.Speedup = None,
    quality: options.Quality = None,
    profile: options.ProfileFile = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: options.Guidance = None,
    seed: Annotated[int, typer.Option(min=0, max=options.MAX_SEED, help="Seed of the first noise.")] = 0,
    size: options.Size = None,
    frames: options.Frames = None,
    image: options.ImageFile = None,
    video: options.VideoFile = None,
    negative_prompt: options.NegativePrompt = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="The film to write.")] = Path("clip.mp4"),
    trace: Annotated[Path | None, typer.Option(help="JSON lines of what was cached at each step.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without the cache.")] = False,
    settings: options.Settings = None,
    force: options.Force = False,
) -> None:
    """Generates one clip from any supported local pipeline folder; --plain from any video pipeline."""
    with told_errors():
        config = options.parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        asked = options.asked_arguments(size, frames, steps, guidance, negative_prompt, image, video)
        if plain and trace:
            raise ValueError("--trace needs the cache, which --plain leaves out")
        prepare_file(out, force, ".mp4")
        if trace:
            prepare_file(trace, force, ".jsonl")
    quiet()
    from mixcache import generation
    from mixcache.arguments import call_arguments
    from mixcache.hosts.diffusers.attachment import enable
    from mixcache.report.video import write_mp4
    from mixcache.summary import speedup_text

    with told_errors("Interrupted; nothing was written."):
        pipeline, defaults = generation.open_model(model, dtype=dtype, device=device)
        arguments = call_arguments(pipeline, defaults, asked)
        handle = None if plain else enable(pipeline, config)
        with progress_display() as progress:
            on_step = watched(progress, "denoising")
            made = generation.generate(pipeline, prompt, seed=seed, on_step=on_step, **arguments)
        write_mp4(made.clip, out)
        if trace and handle is not None:
            handle.trace.save(trace)
    typer.echo(f"film      {out} ({made.denoising_seconds:.1f} s of denoising)")
    if handle is not None:
        summary = handle.summary()
        if summary.speedup is not None:
            typer.echo(f"speed-up  {speedup_text(summary.speedup, summary.wished_speedup)}, as its own steps tell")
        if summary.estimate is not None:
            typer.echo(f"quality   {summary.estimate}")
        typer.echo(f"steps     {counted(summary.granularity_counts)}; {summary.computed_share:.0%} of the work")
        if summary.num_non_finite:
            typer.echo(f"warning   {summary.num_non_finite} calls gave a NaN or an infinity", err=True)
        if trace:
            typer.echo(f"trace     {trace}")
