"""`mixcache demo`: a few captions, plain and cached, as films and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixcache.cli.options import (
    MAX_SEED,
    Device,
    Dtype,
    Force,
    NegativePrompt,
    PolicyName,
    ProfileFile,
    Quality,
    Settings,
    Speedup,
    parse_config,
)
from mixcache.cli.outputs import prepare_folder
from mixcache.cli.terminal import counted, fail, progress_display, quiet


def demo(
    prompts: Annotated[int, typer.Option(min=1, max=1000, help="Held-out captions to generate.")] = 3,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first clip; chooses the captions too.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for films and report.")] = Path("mixcache-demo"),
    policy: PolicyName = None,
    speedup: Speedup = None,
    quality: Quality = None,
    profile: ProfileFile = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, max=1000, help="Guidance scale.")] = 5.0,
    negative_prompt: NegativePrompt = None,
    dtype: Dtype = None,
    device: Device = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Generates a few captions twice, plain and cached, and writes films, report.html and report.json."""
    from mixcache.report.video import film_names

    try:
        chosen = parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        films = [name for index in range(prompts) for name in film_names(index).values()]
        prepare_folder(out, ["report.json", "report.html", *films], force)
    except (ValueError, TypeError) as error:
        fail(error)
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
    with progress_display() as progress:

        def watcher(index: int, kind: str) -> Any:
            task = progress.add_task(f"clip {index + 1} of {prompts}, {kind:6}", total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        try:
            report = run_demo(config, out, watcher)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            progress.stop()
            fail(error)
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
    psnr = "identical" if report["psnr_db"] is None else f"{report['psnr_db']:.1f} dB"
    typer.echo(f"speed-up  {report['speedup']:.2f}x of the denoising loop")
    typer.echo(f"quality   PSNR {psnr}, SSIM {report['ssim']:.3f} against the plain clips")
    typer.echo(f"caption   {report['adherence_plain']:.0%} right plain, {report['adherence_cached']:.0%} right cached")
    typer.echo(f"steps     {counted(report['granularity_counts'])}")
