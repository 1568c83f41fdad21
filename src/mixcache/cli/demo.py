"""`mixcache demo`: a few captions, plain and cached, as films and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixcache.cli import options
from mixcache.cli.outputs import prepare_folder
from mixcache.cli.terminal import counted, progress_display, quiet, told_errors, watched


def demo(
    prompts: Annotated[int, typer.Option(min=1, max=1000, help="Held-out captions to generate.")] = 3,
    seed: Annotated[
        int, typer.Option(min=0, max=options.MAX_SEED, help="Seed of the first clip; chooses the captions too.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for films and report.")] = Path("mixcache-demo"),
    policy: options.PolicyName = None,
    speedup: options.Speedup = None,
    quality: options.Quality = None,
    profile: options.ProfileFile = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, max=1000, help="Guidance scale.")] = 5.0,
    negative_prompt: options.NegativePrompt = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    settings: options.Settings = None,
    force: options.Force = False,
) -> None:
    """Generates a few captions twice, plain and cached, and writes films, report.html and report.json."""
    from mixcache.report.video import film_names

    with told_errors():
        chosen = options.parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        films = [name for index in range(prompts) for name in film_names(index).values()]
        prepare_folder(out, ["report.json", "report.html", *films], force)
    quiet()
    from mixcache.demo import DemoConfig, run_demo

    config = DemoConfig(
        num_prompts=prompts,
        seed=seed,
        policy=chosen.policy_name,
        settings=dict(chosen.settings),
        num_inference_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
        dtype=dtype,
        device=device,
    )
    with told_errors(), progress_display() as progress:
        report = run_demo(
            config, out, lambda index, kind: watched(progress, f"clip {index + 1} of {prompts}, {kind:6}")
        )
    if report["interrupted"]:
        typer.echo(f"Interrupted: {len(report['clips'])} of {prompts} clips are finished.", err=True)
    if report["clips"]:
        _say_figures(report)
    if report["num_non_finite"]:
        typer.echo(
            f"warning   {report['num_non_finite']} calls gave a NaN or an infinity; they were not cached", err=True
        )
    typer.echo(f"report    {out / 'report.html'}")
    if report["interrupted"]:
        raise typer.Exit(130)


def _say_figures(report: dict[str, Any]) -> None:
    from mixcache.summary import speedup_text

    psnr = "identical" if report["psnr_db"] is None else f"{report['psnr_db']:.1f} dB"
    typer.echo(f"speed-up  {speedup_text(report['speedup'], report['settings'].get('speedup'))}")
    typer.echo(f"quality   PSNR {psnr}, SSIM {report['ssim']:.3f} against the plain clips")
    typer.echo(f"steps     {counted(report['granularity_counts'])}")
