"""The demo: captions generated twice from the same seed, plain and cached, with films, a report and the figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from mixcache import generation
from mixcache.arguments import call_arguments
from mixcache.config import DEFAULT_POLICY
from mixcache.generation import Generated, OnStep
from mixcache.hosts.diffusers.attachment import enable
from mixcache.hosts.diffusers.handle import Handle
from mixcache.metrics import video_psnr, video_ssim
from mixcache.report.html import write_html
from mixcache.report.video import ClipPair, film_names, side_by_side, write_mp4
from mixcache.store import write_json
from mixcache.zoo import world

FORMAT = 1
MODEL = "shapes-wan"
FILM_SCALE = 4
FRAMES_PER_SECOND = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """What the demo runs."""

    num_prompts: int = 3
    seed: int = 0
    policy: str = DEFAULT_POLICY
    """As that of `mixcache.enable`."""
    settings: dict[str, Any] = field(default_factory=dict)
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    negative_prompt: str | None = None
    dtype: str | None = None
    device: str | None = None
    """These two as in `open_model`."""


Watcher = Callable[[int, str], OnStep]
"""Makes the step callback for (clip index, "plain" or "cached")."""


def run_demo(config: DemoConfig, out: Path, watcher: Watcher | None = None) -> dict[str, Any]:
    """Generates, measures and writes everything into `out`, which exists; returns what stands in report.json.

    A KeyboardInterrupt ends it early: the finished clips and a report of them are written, and `interrupted` is true.
    Another error leaves the same, and goes on to the caller. ValueError for settings that do not fit the model, before
    any work.
    """
    pipeline, defaults = generation.open_model(MODEL, dtype=config.dtype, device=config.device)
    with enable(pipeline, config.policy, **config.settings) as probe:
        settings = probe.settings
    asked: dict[str, Any] = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
    if config.negative_prompt is not None:
        asked["negative_prompt"] = config.negative_prompt
    arguments = call_arguments(pipeline, defaults, asked)
    captions = world.held_out_captions(config.num_prompts, config.seed)
    clips: list[dict[str, Any]] = []
    pairs: list[ClipPair] = []
    interrupted, peak_bytes = False, 0
    try:
        generation.generate(pipeline, captions[0], seed=0, **arguments | {"num_inference_steps": 2})
        for index, caption in enumerate(captions):
            watch = [watcher(index, "plain"), watcher(index, "cached")] if watcher else [None, None]
            seed = config.seed + index
            plain = generation.generate(pipeline, caption, seed=seed, on_step=watch[0], **arguments)
            with enable(pipeline, config.policy, **config.settings) as handle:
                cached = generation.generate(pipeline, caption, seed=seed, on_step=watch[1], **arguments)
            peak_bytes = max(peak_bytes, handle.engine.peak_bytes)
            record = _clip_record(index, caption, seed, plain, cached, handle, out)
            pairs, clips = [*pairs, ClipPair(plain=plain.clip, cached=cached.clip)], [*clips, record]
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # also after an error: the finished clips are not lost
        report = _report(config, settings, arguments, clips, pipeline)
        report |= {"interrupted": interrupted, "cache_peak_bytes": peak_bytes}
        write_json(out / "report.json", report)
        write_html(report, pairs[: len(clips)], out / "report.html")
    return report


def _clip_record(
    index: int, caption: str, seed: int, plain: Generated, cached: Generated, handle: Handle, out: Path
) -> dict[str, Any]:
    names = film_names(index)
    films = {"plain": plain.clip, "cached": cached.clip, "side_by_side": side_by_side([plain.clip, cached.clip])}
    for kind, film in films.items():
        write_mp4(film, out / names[kind], fps=FRAMES_PER_SECOND, scale=FILM_SCALE)
    psnr = video_psnr(cached.clip, plain.clip)
    return {
        "caption": caption,
        "seed": seed,
        "seconds_plain": plain.denoising_seconds,
        "seconds_cached": cached.denoising_seconds,
        "speedup": plain.denoising_seconds / cached.denoising_seconds,
        "ideal_speedup": handle.summary().ideal_speedup,
        "psnr_db": psnr if math.isfinite(psnr) else None,
        "ssim": video_ssim(cached.clip, plain.clip),
        "granularity_counts": handle.trace.counts(),
        "peak_memory_bytes": max(plain.peak_memory_bytes, cached.peak_memory_bytes),
        **names,
        "trace": [entry.to_json() for entry in handle.trace],
    }


def _report(
    config: DemoConfig,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    clips: list[dict[str, Any]],
    pipeline: Any,
) -> dict[str, Any]:
    def mean(values: list[float]) -> float | None:
        return fmean(values) if values else None

    plain, cached = (sum(clip[f"seconds_{kind}"] for clip in clips) for kind in ("plain", "cached"))
    counts = [clip["granularity_counts"] for clip in clips]
    return {
        "format": FORMAT,
        "model": MODEL,
        "policy": config.policy,
        "settings": settings,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "seed": config.seed,
        "size": [arguments["width"], arguments["height"]],
        "num_frames": arguments["num_frames"],
        "speedup": plain / cached if clips else None,
        "psnr_db": mean([clip["psnr_db"] for clip in clips if clip["psnr_db"] is not None]),
        "ssim": mean([clip["ssim"] for clip in clips]),
        "num_non_finite": sum(entry["non_finite"] for clip in clips for entry in clip["trace"]),
        "granularity_counts": {g: sum(c[g] for c in counts) for g in ("compute", "block", "cfg", "step")},
        "peak_memory_bytes": max((clip["peak_memory_bytes"] for clip in clips), default=0),
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        "clips": clips,
    }
