"""The command line: few verbs, each one call into the library. An error is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from mixcache.config import MixCacheConfig
    from mixcache.hosts.diffusers.attachment import Handle

app = typer.Typer(
    help="Makes video diffusion transformers faster by caching what is safe to cache at each step.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

MAX_SEED = 2**63 - 1
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting of the policy, its bounds or the span; may be repeated."
    ),
]


Speedup = Annotated[
    float | None, typer.Option(help="Wanted speed-up of the denoising loop, such as 2.0 (policy planned).")
]
Quality = Annotated[
    float | None, typer.Option(help="Wanted PSNR in dB against the plain clip, instead of a speed-up (policy planned).")
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="Profile from `mixcache calibrate`; else the one that is shipped.")
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Picture that the pipeline begins with.")]
VideoFile = Annotated[Path | None, typer.Option("--video", help="Film that the pipeline begins with.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What not to show.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on a GPU unless told.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU unless told, if there is one.")]


def fail(message: object) -> NoReturn:
    """One line on standard error, exit code 2."""
    typer.echo(f"mixcache: {str(message).strip()}", err=True)
    raise typer.Exit(2)


def parse_config(policy: str | None, pairs: list[str] | None, **named: Any) -> MixCacheConfig:
    """The policy and its settings, checked; `named` are settings with an option of their own, None where not given.

    ValueError or TypeError for a wrong one.
    """
    from mixcache.config import MixCacheConfig, default_policy, parse_settings

    settings = parse_settings(pairs) | {name: value for name, value in named.items() if value is not None}
    if "profile" in settings:
        settings["profile"] = str(settings["profile"])
    return MixCacheConfig(policy=policy or default_policy(settings), settings=settings)


def prepare_folder(out: Path, names: list[str], force: bool) -> None:
    """Makes the folder and proves that it can be written; ValueError before any work if not, or if a file is in the
    way."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {out} cannot be made: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {out} cannot be written")
    existing = [name for name in names if (out / name).exists()]
    if existing and not force:
        raise ValueError(f"{out / existing[0]} exists; --force overwrites it, --out names another")
    for name in existing:
        if not (out / name).is_file() or not os.access(out / name, os.W_OK):
            raise ValueError(f"{out / name} is in the way and cannot be overwritten")


def prepare_file(path: Path, force: bool, suffix: str) -> None:
    """As `prepare_folder`, for one file that must end in `suffix`."""
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    prepare_folder(path.parent, [path.name], force)


def quiet() -> None:
    """Keeps the libraries' own chatter off the terminal, and the hub out of reach."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def progress_display() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=not sys.stdout.isatty())


@app.command()
def demo(
    prompts: Annotated[int, typer.Option(min=1, max=1000, help="Held-out captions to generate.")] = 3,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first clip; chooses the captions too.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for films and report.")] = Path("mixcache-demo"),
    policy: Annotated[str | None, typer.Option(help="Caching policy; hindsight unless told.")] = None,
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


def counted(counts: dict[str, int]) -> str:
    """`{"compute": 20, "step": 30}` as "20 compute, 30 step"."""
    return ", ".join(f"{number} {granularity}" for granularity, number in counts.items())


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    model: Annotated[str, typer.Option(help="Built-in model, or the folder of a diffusers pipeline.")] = "shapes-wan",
    policy: Annotated[str | None, typer.Option(help="Caching policy; hindsight unless told.")] = None,
    speedup: Speedup = None,
    quality: Quality = None,
    profile: ProfileFile = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first noise.")] = 0,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Frame size in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Number of frames.")] = None,
    image: ImageFile = None,
    video: VideoFile = None,
    negative_prompt: NegativePrompt = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="The film to write.")] = Path("clip.mp4"),
    trace: Annotated[Path | None, typer.Option(help="JSON lines of what was cached at each step.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without the cache.")] = False,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Generates one clip from any supported local pipeline folder; --plain from any video pipeline."""
    try:
        config = parse_config(policy, settings, speedup=speedup, quality=quality, profile=profile)
        asked = asked_arguments(size, frames, steps, guidance, negative_prompt, image, video)
        if plain and trace:
            raise ValueError("--trace needs the cache, which --plain leaves out")
        prepare_file(out, force, ".mp4")
        if trace:
            prepare_file(trace, force, ".jsonl")
    except (ValueError, TypeError) as error:
        fail(error)
    quiet()
    from mixcache import generation
    from mixcache.report.video import write_mp4

    try:
        placement = {"dtype": dtype, "device": device}
        pipeline, arguments, handle = prepare_pipeline(model, None if plain else config, asked, placement)
    except (ValueError, TypeError) as error:
        fail(error)
    try:
        with progress_display() as progress:
            task = progress.add_task("denoising", total=None)
            watch = {"on_step": lambda done, total: progress.update(task, completed=done, total=total)}
            made = generation.generate(pipeline, prompt, seed=seed, **watch, **arguments)
        write_mp4(made.clip, out)
        if trace and handle is not None:
            handle.trace.save(trace)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"film      {out} ({made.denoising_seconds:.1f} s of denoising)")
    if handle is not None:
        summary = handle.summary()
        typer.echo(f"steps     {counted(summary['granularity_counts'])}; {summary['computed_share']:.0%} of the work")
        if summary["num_non_finite"]:
            typer.echo(f"warning   {summary['num_non_finite']} calls gave a NaN or an infinity", err=True)
        if trace:
            typer.echo(f"trace     {trace}")


def prepare_pipeline(
    model: str, config: MixCacheConfig | None, asked: dict[str, Any], placement: dict[str, str | None]
) -> tuple[Any, dict[str, Any], Handle | None]:
    """The pipeline, the arguments of its call, and the handle, which a plain run (`config` None) has not.

    ValueError or TypeError for what is no pipeline, is not supported, or cannot be called so.
    """
    from mixcache.generation import call_arguments, open_model
    from mixcache.hosts.diffusers.attachment import enable

    pipeline, defaults = open_model(model, **placement)
    arguments = call_arguments(pipeline, defaults, asked)
    return pipeline, arguments, None if config is None else enable(pipeline, config)


def asked_arguments(
    size: str | None,
    frames: int | None,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
    image: Path | None,
    video: Path | None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call, those that were given; ValueError for a size that is none, and for a picture or
    film that cannot be read."""
    width, height = parse_size(size)
    asked: dict[str, Any] = {"height": height, "width": width, "num_frames": frames}
    asked |= {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative_prompt}
    if image or video:
        from mixcache.generation import read_image, read_video

        asked["image"] = read_image(image, (width, height)) if image else None
        asked["video"] = read_video(video, (width, height), frames) if video else None
    return {name: value for name, value in asked.items() if value is not None}


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """`"832x480"` as (832, 480); ValueError for anything else."""
    if size is None:
        return None, None
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--size {size!r} is not WIDTHxHEIGHT, such as 832x480")
    return int(width), int(height)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="The profile to write; PROFILE.partial is kept until it is done.")],
    model: Annotated[str, typer.Option(help="Built-in model, or the folder of a diffusers pipeline.")] = "shapes-wan",
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line.")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=1000, help="Captions, for a built-in model.")] = 4,
    steps: Annotated[
        list[int] | None, typer.Option(min=5, help="Denoising steps; may be repeated, for a profile that serves each.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help="Guidance scale.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Frame size in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Number of frames.")] = None,
    image: ImageFile = None,
    video: VideoFile = None,
    negative_prompt: NegativePrompt = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
) -> None:
    """Measures what `--speedup` needs to know of a model, on a few prompts; goes on where it was cut off."""
    try:
        asked = asked_arguments(size, frames, None, guidance, negative_prompt, image, video)
        prepare_file(out, force, ".json")
        given = read_prompts(prompts) if prompts else None
    except (ValueError, TypeError) as error:
        fail(error)
    quiet()
    from mixcache.calibration import CalibrationConfig, built_in_prompts
    from mixcache.calibration import calibrate as measure
    from mixcache.generation import call_arguments, open_model
    from mixcache.zoo import BUILT_IN

    try:
        pipeline, defaults = open_model(model, dtype=dtype, device=device)
        if given is None and model not in BUILT_IN:
            raise ValueError("--prompts FILE is missing: only the built-in models bring captions of their own")
        arguments = call_arguments(pipeline, defaults, asked)
        config = CalibrationConfig(
            model=model if model in BUILT_IN else Path(model).resolve().name,
            prompts=tuple(given or built_in_prompts(num_prompts)),
            arguments=arguments,
            command=shlex.join(["mixcache", *sys.argv[1:]]),
        )
        with progress_display() as progress:
            task = progress.add_task("measurements", total=None)

            def watch(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            profile = measure(pipeline, config, out, watch, step_counts=steps or ())
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted; the same command goes on from {out}.partial.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"profile   {out}")
    for expert in profile.experts:
        typer.echo("costs     " + ", ".join(f"{name} {cost:.0%}" for name, cost in expert.costs.items()))


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md, quality.png and report.html.")],
    model: Annotated[str, typer.Option(help="Built-in model, or the folder of a diffusers pipeline.")] = "shapes-wan",
    methods: Annotated[str, typer.Option(help="Names or groups, by commas: ours, peers, all, hindsight ...")] = "all",
    steps: Annotated[int | None, typer.Option(min=4, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="unipc, euler or dpm++, for models of flow matching.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Frame size in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Number of frames.")] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(min=1, max=200, help="Held-out captions (8 unless told), or the first lines of --prompts."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line.")] = None,
    calibration_prompts: Annotated[
        Path | None, typer.Option(help="The same for peers that calibrate themselves; not to be measured on.")
    ] = None,
    image: ImageFile = None,
    video: VideoFile = None,
    negative_prompt: NegativePrompt = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first clip.")] = 9000,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Clips of each method and prompt.")] = 1,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in the folder; with --force, begin anew if it is of another case."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Measures caching methods side by side: ours, the real peers, and fewer plain steps."""
    try:
        asked = asked_arguments(size, frames, steps, guidance, negative_prompt, image, video)
        prepare_folder(out, [], force)
        given = read_prompts(prompts)[:num_prompts] if prompts else None
        own = read_prompts(calibration_prompts) if calibration_prompts else None
    except (ValueError, TypeError) as error:
        fail(error)
    quiet()
    from mixcache.bench.command import Bench, BenchConfig, calibration_captions, held_out
    from mixcache.bench.families import split
    from mixcache.bench.page import best_lines

    try:
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

            def watcher(stage: str) -> Any:
                task = progress.add_task(stage, total=None)
                return lambda done, total: progress.update(task, completed=done, total=total)

            result = run.run(watcher)
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo("Interrupted; the same command with --resume goes on.", err=True)
        raise typer.Exit(130) from None
    for line in best_lines(result):
        typer.echo(line)
    for name, fact in result["methods"].items():
        if fact["failure"]:
            typer.echo(f"failed    {name}: {fact['failure']}", err=True)
    typer.echo(f"results   {out / 'results.json'}")
    typer.echo(f"report    {out / 'report.html'}")
    if all(fact["failure"] for fact in result["methods"].values()):
        raise typer.Exit(1)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="results.json of one run.")],
    after: Annotated[Path, typer.Argument(help="results.json of another, of the same case.")],
) -> None:
    """Says what changed between two benchmarks beyond noise; exit code 1 if it is a loss."""
    from mixcache.bench.compare import compare as changes_of
    from mixcache.bench.results import load

    try:
        first, second = load(before), load(after)
        changes = changes_of(first, second)
    except ValueError as error:
        fail(error)
    for name in ("versions", "machine"):
        if first.get(name) != second.get(name):
            typer.echo(f"note      {name} differ: {first.get(name)} and {second.get(name)}", err=True)
    for change in changes:
        kind = "LOSS  " if change.is_loss else "change"
        typer.echo(f"{kind}    {change.method}: {change.what}: {change.before} -> {change.after}")
    if not changes:
        typer.echo("no change beyond noise")
    if any(change.is_loss for change in changes):
        raise typer.Exit(1)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty; ValueError where there are none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the prompts {path} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"there is no prompt in {path}; write one a line")
    return found


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="Built-in model, or the folder of a diffusers pipeline.")] = "shapes-wan",
    profile: ProfileFile = None,
    speedup: Speedup = None,
    quality: Quality = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help="Guidance scale.")] = None,
    force_profile: Annotated[bool, typer.Option("--force-profile", help="Take a profile of another model.")] = False,
    png: Annotated[Path | None, typer.Option(help="Picture of the frontier to write.")] = None,
    force: Force = False,
) -> None:
    """Prints the schedule for a wanted speed-up or quality, what it is expected to give, and what else there is."""
    named = {"speedup": speedup, "quality": quality, "profile": profile, "force_profile": force_profile or None}
    try:
        config = parse_config("planned", None, **named)
        if png:
            prepare_file(png, force, ".png")
    except (ValueError, TypeError) as error:
        fail(error)
    quiet()
    from mixcache.generation import open_model
    from mixcache.hosts.diffusers.attachment import enable
    from mixcache.hosts.diffusers.levels import levels_of_steps
    from mixcache.report.frontier import draw_frontier, frontier_rows, letters

    try:
        pipeline, arguments = open_model(model)
        with enable(pipeline, config) as handle:
            planner = handle.planner
        scale = guidance if guidance is not None else arguments.get("guidance_scale", planner.profile.guidance)
        sigmas = planner.profile.levels(steps, lambda count: levels_of_steps(pipeline.scheduler, count))
        plans = planner.frontier(sigmas, scale)
        chosen = planner.chosen(plans)
        if png:
            draw_frontier(plans, chosen, png)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(error)
    typer.echo(f"schedule  {letters(chosen.choices)}")
    typer.echo(f"          # compute, s step, g cfg, b block; capitals extrapolate, with a trust of {chosen.trust:g}")
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


@app.command()
def models() -> None:
    """Lists the supported transformers and pipelines, and the built-in models."""
    from mixcache.hosts.diffusers.rows import rows_as_table
    from mixcache.zoo import BUILT_IN

    rows = rows_as_table()
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # plain: a table of rich is cut to the width of the terminal, and to 80 columns without one
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"built in: {', '.join(BUILT_IN)}")


def main() -> None:
    """Entry point of `mixcache`."""
    app()
