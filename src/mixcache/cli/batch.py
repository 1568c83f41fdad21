"""`mixcache batch`: a file of jobs, and a folder of clips."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixcache.cli.options import (
    MAX_SEED,
    Dtype,
    Frames,
    Guidance,
    Model,
    NegativePrompt,
    PolicyName,
    ProfileFile,
    Quality,
    Settings,
    Size,
    Speedup,
    parse_config,
    parse_size,
)
from mixcache.cli.terminal import fail, progress_display

if TYPE_CHECKING:
    from mixcache.batch.driver import Progress, Result
    from mixcache.batch.jobs import BadLine

RUNNERS = ("local", "ray")
SECONDS_BETWEEN_LINES = 60.0
"""Of progress, where the output is no terminal."""


def batch(
    jobs: Annotated[Path, typer.Argument(help="JSON lines, Parquet, or a text file with a prompt a line.")],
    out: Annotated[Path, typer.Option(help="Folder for the clips; the same command goes on with what is missing.")],
    model: Model = "shapes-wan",
    policy: PolicyName = None,
    speedup: Speedup = None,
    quality: Quality = None,
    profile: ProfileFile = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of jobs that have none.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of jobs that say none.")] = None,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    negative_prompt: NegativePrompt = None,
    dtype: Dtype = None,
    runner: Annotated[str, typer.Option(help="local, or ray (pip install 'mixcache[ray]').")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Processes; one for each device unless told.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="Of the local runner, by commas: cuda:0,cuda:1; every GPU unless told.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster, HOST:PORT or auto; else one is begun.")] = None,
    verify: Annotated[
        int, typer.Option(min=0, help="Clips to hold against the plain ones, which are made for it.")
    ] = 0,
    again: Annotated[bool, typer.Option("--again", help="Try again what was given up.")] = False,
) -> None:
    """Makes a clip of each job, on many devices or machines; exit code 1 where some failed."""
    from mixcache.batch.crew import Crew, NoWorkersError
    from mixcache.batch.driver import StoppedError, run_batch
    from mixcache.batch.folder import Folder
    from mixcache.batch.jobs import Batch, Job, read_jobs
    from mixcache.config import unknown_name

    folder = None
    signal.signal(signal.SIGTERM, _interrupt)  # as a scheduler of clusters ends what it preempts
    try:
        if runner not in RUNNERS:
            raise ValueError(unknown_name("runner", runner, RUNNERS))
        if devices and runner != "local":
            raise ValueError("--devices is for the local runner; Ray gives each worker a device")
        if address and runner != "ray":
            raise ValueError("--address is of a Ray cluster; add --runner ray")
        config = parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        width, height = parse_size(size)
        shared: dict[str, Any] = {"width": width, "height": height, "num_frames": frames, "num_inference_steps": steps}
        shared |= {"guidance_scale": guidance, "negative_prompt": negative_prompt}
        about = Batch.of(model, config.policy_name, config.settings, dtype)
        defaults = Job(batch=about.key, seed=seed, **shared)

        def read() -> Any:
            return read_jobs(jobs, defaults)

        _check_some(read())
        folder = Folder.open(out, about, shared)
        crew = Crew(_pool(runner, folder, workers, devices, address), folder)
        with progress_display() as display:
            result = run_batch(
                read, crew, folder, num_verified=verify, again=again, on_progress=_Shown(display, sys.stdout.isatty())
            )
    except (NoWorkersError, ValueError, TypeError) as error:
        fail(error)
    except StoppedError as error:
        typer.echo(f"mixcache: stopped: {error}; the same command goes on", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; the same command goes on.", err=True)
        raise typer.Exit(130) from None
    finally:
        if folder is not None:
            folder.close()
    _tell(result, out)
    if result.num_failed or result.bad_lines:
        raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _pool(runner: str, folder: Any, workers: int | None, devices: str | None, address: str | None) -> Any:
    if runner == "ray":
        from mixcache.batch.cluster import RayPool

        return RayPool(folder, workers, address)
    from mixcache.batch.local import LocalPool, local_devices

    names = tuple(name.strip() for name in devices.split(",") if name.strip()) if devices else local_devices()
    return LocalPool(folder, workers or len(names), names)


def _check_some(lines: Any) -> None:
    """ValueError where not one line is a job."""
    first: BadLine | None = None
    for line in lines:
        if not hasattr(line, "message"):
            return
        first = first or line
    raise ValueError(f"line {first.number}: {first.message}; no line is a job" if first else "there is no job in it")


class _Shown:
    """Progress on the terminal, or a line a minute where there is none."""

    def __init__(self, display: Any, is_terminal: bool) -> None:
        self.display, self.is_terminal, self.task, self.said = display, is_terminal, None, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if self.task is None:
            self.task = self.display.add_task("clips", total=progress.total, completed=progress.num_done)
        saving = "" if progress.mean_saving is None else f", {progress.mean_saving:.0%} saved"
        text = f"clips, {progress.clips_a_minute:.1f} a minute, {progress.num_failed} failed{saving}"
        settled = progress.num_done + progress.num_failed
        self.display.update(self.task, description=text, completed=settled)
        if not self.is_terminal and time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            typer.echo(f"{settled} of {progress.total} {text}")


def _tell(result: Result, out: Path) -> None:
    for line in result.bad_lines:
        typer.echo(f"line {line.number}    {line.message}", err=True)
    for job, message in result.failures:
        typer.echo(f"failed    {job.id} {job.prompt[:60]!r}: {message}", err=True)
    if result.num_failed > len(result.failures):
        typer.echo(f"failed    and {result.num_failed - len(result.failures)} more; the wall shows all", err=True)
    for warning in result.warnings:
        typer.echo(f"warning   {warning}", err=True)
    failed = f", {result.num_failed} failed" if result.num_failed else ""
    typer.echo(f"clips     {result.num_done} of {result.num_jobs} are done{failed}")
    if (found := result.verified) is not None:
        lowest, middle = ("identical" if v is None else f"{v:.1f} dB" for v in (found.lowest_db, found.median_db))
        typer.echo(f"verified  {found.num_clips} clips: lowest PSNR {lowest}, median {middle}")
    typer.echo(f"wall      {out / 'index.html'}")
