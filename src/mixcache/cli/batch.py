"""`mixcache batch`: a file of jobs, and a folder of clips."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixcache.cli import options
from mixcache.cli.terminal import progress_display, told_errors

if TYPE_CHECKING:
    from mixcache.batch.driver import Progress, Result

RUNNERS = ("local", "ray")
SECONDS_BETWEEN_LINES = 60.0
"""Of progress, where the output is no terminal."""


def batch(
    jobs: Annotated[Path, typer.Argument(help="JSON lines, Parquet, or a text file with a prompt a line.")],
    out: Annotated[Path, typer.Option(help="Folder for the clips; the same command goes on with what is missing.")],
    model: options.Model = "shapes-wan",
    policy: options.PolicyName = None,
    speedup: options.Speedup = None,
    quality: options.Quality = None,
    profile: options.ProfileFile = None,
    settings: options.Settings = None,
    seed: Annotated[int, typer.Option(min=0, max=options.MAX_SEED, help="Of jobs that have none.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of jobs that say none.")] = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    negative_prompt: options.NegativePrompt = None,
    dtype: options.Dtype = None,
    runner: Annotated[str, typer.Option(help="local, or ray (pip install 'mixcache[ray]').")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, max=10_000, help="One for each device unless told.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="Of runner local, as cuda:0,cuda:1; all GPUs unless told.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster, HOST:PORT or auto; else one is begun.")] = None,
    verify: Annotated[int, typer.Option(min=0, help="Clips that are made plain too, to say how near they are.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Try again what was given up.")] = False,
) -> None:
    """Makes a clip of each job, on many devices or machines; exit code 1 where some failed."""
    from mixcache.batch.crew import Crew
    from mixcache.batch.driver import StoppedError, check_some, run_batch
    from mixcache.batch.folder import Folder
    from mixcache.batch.jobs import Batch, Job, read_jobs

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a cluster ends what it preempts
    with told_errors("Interrupted; the same command goes on."):
        config = options.parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        width, height = options.size_of(size)
        shared: dict[str, Any] = {"width": width, "height": height, "num_frames": frames, "num_inference_steps": steps}
        shared |= {"guidance_scale": guidance, "negative_prompt": negative_prompt}
        about = Batch.of(model, config.policy_name, config.settings, dtype)
        defaults = Job(batch=about.key, seed=seed, **shared)
        check_some(read_jobs(jobs, defaults))
        with closing(Folder.open(out, about, shared)) as folder:
            pool = _pool(runner, folder, workers, devices, address)
            with progress_display() as display:
                try:
                    result = run_batch(
                        lambda: read_jobs(jobs, defaults),
                        Crew(pool, folder),
                        folder,
                        num_verified=verify,
                        again=again,
                        on_progress=_Shown(display),
                    )
                except StoppedError as error:
                    display.stop()
                    typer.echo(f"mixcache: stopped: {error}; the same command goes on", err=True)
                    raise typer.Exit(1) from None
    _tell(result, out)
    if result.num_failed or result.num_bad_lines:
        raise typer.Exit(1)


def _pool(runner: str, folder: Any, workers: int | None, devices: str | None, address: str | None) -> Any:
    from mixcache.names import unknown_name

    if runner not in RUNNERS:
        raise ValueError(unknown_name("runner", runner, RUNNERS))
    if runner == "ray":
        from mixcache.batch.cluster import RayPool

        if devices:
            raise ValueError("--devices is for the local runner; Ray gives each worker a device")
        return RayPool(folder, workers, address)
    from mixcache.batch.local import LocalPool, local_devices

    if address:
        raise ValueError("--address is of a Ray cluster; add --runner ray")
    names = tuple(name.strip() for name in devices.split(",") if name.strip()) if devices else local_devices()
    return LocalPool(folder, workers or len(names), names)


class _Shown:
    """Progress on the terminal, or a line a minute where there is none."""

    def __init__(self, display: Any) -> None:
        self.display, self.said = display, time.monotonic()
        self.task = display.add_task("clips", total=None)
        self.is_first = True

    def __call__(self, progress: Progress) -> None:
        saving = "" if progress.mean_saving is None else f", {progress.mean_saving:.0%} saved"
        text = f"clips, {progress.clips_a_minute:.1f} a minute, {progress.num_failed} failed{saving}"
        settled = progress.num_done + progress.num_failed
        if self.is_first:  # what was done before says nothing of the pace
            self.display.reset(self.task, total=progress.total, completed=settled)
            self.is_first = False
        self.display.update(self.task, description=text, completed=settled)
        if not sys.stdout.isatty() and time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            left = (progress.total - settled) / max(1e-9, progress.clips_a_minute)
            typer.echo(f"{settled} of {progress.total} {text}, {left:.0f} minutes left")


def _tell(result: Result, out: Path) -> None:
    from mixcache.report.figures import psnr

    lines = [f"line {bad.number:<4} {bad.message}" for bad in result.bad_lines]
    if more := result.num_bad_lines - len(result.bad_lines):
        lines.append(f"lines     and {more} more that are no jobs")
    lines += [f"failed    {job.id} {job.prompt[:60]!r}: {message}" for job, message in result.failures]
    if more := result.num_failed - len(result.failures):
        lines.append(f"failed    and {more} more; the wall shows all")
    for line in [*lines, *(f"warning   {warning}" for warning in result.warnings)]:
        typer.echo(line, err=True)
    failed = f", {result.num_failed} failed" if result.num_failed else ""
    typer.echo(f"clips     {result.num_done} of {result.num_jobs} are done{failed}")
    if (found := result.verified) is not None:
        lowest, middle = psnr(found.lowest_db), psnr(found.median_db)
        typer.echo(f"verified  {found.num_clips} clips: lowest PSNR {lowest}, median {middle}")
    typer.echo(f"wall      {out / 'index.html'}")
