"""`mixcache bench`: methods side by side."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixcache.cli import options
from mixcache.cli.outputs import prepare_folder
from mixcache.cli.terminal import progress_display, quiet, told_errors, watched


def bench(
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md, quality.png and report.html.")],
    model: options.Model = "shapes-wan",
    methods: Annotated[str, typer.Option(help="Names or groups, by commas: ours, peers, all, hindsight ...")] = "all",
    steps: Annotated[int | None, typer.Option(min=4, help="Denoising steps.")] = None,
    guidance: options.Guidance = None,
    scheduler: Annotated[str | None, typer.Option(help="unipc, euler or dpm++, for models of flow matching.")] = None,
    size: options.Size = None,
    frames: options.Frames = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(min=1, max=200, help="Held-out captions (8 unless told), or the first lines of --prompts."),
    ] = None,
    prompts: options.PromptsFile = None,
    calibration_prompts: Annotated[
        Path | None, typer.Option(help="The same for peers that calibrate themselves; not to be measured on.")
    ] = None,
    image: options.ImageFile = None,
    video: options.VideoFile = None,
    negative_prompt: options.NegativePrompt = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(min=0, max=options.MAX_SEED, help="Seed of the first clip.")] = 9000,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Clips of each method and prompt.")] = 1,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in the folder; with --force, begin anew if it is of another case."
        ),
    ] = False,
    force: options.Force = False,
) -> None:
    """Measures caching methods side by side: ours, the real peers, and fewer plain steps."""
    with told_errors():
        asked = options.asked_arguments(size, frames, steps, guidance, negative_prompt, image, video)
        prepare_folder(out, [], force)
        given = options.read_prompts(prompts)[:num_prompts] if prompts else None
        own = options.read_prompts(calibration_prompts) if calibration_prompts else None
    quiet()
    from mixcache.bench.command import Bench, BenchConfig, calibration_captions, held_out
    from mixcache.bench.families import split
    from mixcache.bench.page import best_lines

    with told_errors("Interrupted; the same command with --resume goes on."):
        config = BenchConfig(
            model=model,
            methods=tuple(name.strip() for name in split(methods, ",") if name.strip()),
            prompts=tuple(given or held_out(model, num_prompts or 8)),
            calibration_prompts=calibration_captions(model, own),
            arguments=asked,
            placement={name: value for name, value in (("dtype", dtype), ("device", device)) if value is not None},
            scheduler=scheduler,
            seed=seed,
            num_repeats=repeats,
            command=shlex.join(["mixcache", *(word for word in sys.argv[1:] if word != "--resume")]),
        )
        run = Bench(config, out, resume=resume, force=force)
        with progress_display() as progress:
            result = run.run(lambda stage: watched(progress, stage))
    for line in best_lines(result):
        typer.echo(line)
    for name, fact in result["methods"].items():
        if fact["failure"]:
            typer.echo(f"failed    {name}: {fact['failure']}", err=True)
    typer.echo(f"results   {out / 'results.json'}")
    typer.echo(f"report    {out / 'report.html'}")
    if all(fact["failure"] for fact in result["methods"].values()):
        raise typer.Exit(1)
