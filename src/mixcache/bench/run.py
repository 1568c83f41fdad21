"""Runs methods on prompts, interleaved, and sums up: wall-clock, quality against the plain clip, adherence, work
really skipped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median, pstdev
from typing import Any

from mixcache import generation
from mixcache.attachment import enable
from mixcache.bench.methods import PLAIN, Method
from mixcache.generation import Generated
from mixcache.metrics import adherence, video_psnr, video_ssim

WARM_UP_STEPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One method on one prompt."""

    method: str
    prompt: str
    seed: int
    denoising_seconds: float
    speedup: float
    """Seconds of the plain clip of the same prompt, over this one's."""
    ideal_speedup: float
    """If everything but the transformer's blocks and calls cost nothing."""
    psnr_db: float | None
    """Against the plain clip; None where the two are identical."""
    ssim: float
    adherence: float
    """Share of the caption that the clip shows, 0 to 1."""
    cache_peak_bytes: int
    granularity_counts: dict[str, int]


def run_method(
    pipeline: Any, method: Method, prompt: str, seed: int, arguments: dict[str, Any]
) -> tuple[Generated, Any]:
    """The clip of one method, and its handle's summary (None for the plain pipeline)."""
    if method.num_inference_steps is not None:
        arguments = arguments | {"num_inference_steps": method.num_inference_steps}
    if method.policy is None:
        return generation.generate(pipeline, prompt, seed=seed, **arguments), None
    with enable(pipeline, method.policy, **method.settings) as handle:
        made = generation.generate(pipeline, prompt, seed=seed, **arguments)
        return made, handle.summary()


def run(
    pipeline: Any,
    methods: Sequence[Method],
    prompts: Sequence[str],
    arguments: dict[str, Any],
    *,
    seed: int,
    on_clip: Callable[[], None] | None = None,
) -> list[Record]:
    """Every method on every prompt, the order turning with the prompt.

    The plain clip is made before and after the others; its time is the mean of the two. `on_clip` is called
    after every clip.
    """
    generation.generate(pipeline, prompts[0], seed=seed, **arguments | {"num_inference_steps": WARM_UP_STEPS})
    records = []
    for index, prompt in enumerate(prompts):
        turn = index % max(1, len(methods))
        made: list[tuple[Method, Generated, dict[str, Any] | None]] = []
        for method in [PLAIN, *methods[turn:], *methods[:turn], PLAIN]:
            made.append((method, *run_method(pipeline, method, prompt, seed + index, arguments)))
            if on_clip:
                on_clip()
        first, last = made[0][1], made.pop()[1]
        plain = replace(first, denoising_seconds=(first.denoising_seconds + last.denoising_seconds) / 2)
        made[0] = (PLAIN, plain, None)
        num_steps = arguments["num_inference_steps"]
        records += [
            _record(method, prompt, seed + index, plain, clip, summary, num_steps) for method, clip, summary in made
        ]
    return records


def _record(
    method: Method, prompt: str, seed: int, plain: Generated, made: Generated, summary: Any, num_steps: int
) -> Record:
    psnr = video_psnr(made.clip, plain.clip)
    ideal = num_steps / (method.num_inference_steps or num_steps)
    return Record(
        method=method.name,
        prompt=prompt,
        seed=seed,
        denoising_seconds=made.denoising_seconds,
        speedup=plain.denoising_seconds / made.denoising_seconds,
        ideal_speedup=summary["ideal_speedup"] if summary else ideal,
        psnr_db=psnr if math.isfinite(psnr) else None,
        ssim=video_ssim(made.clip, plain.clip),
        adherence=adherence(made.clip, prompt).mean,
        cache_peak_bytes=summary["peak_bytes"] if summary else 0,
        granularity_counts=summary["granularity_counts"] if summary else {},
    )


def summarise(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per method, in order of appearance: medians of times, means of qualities, spread of the PSNR."""
    rows = []
    for name in dict.fromkeys(record.method for record in records):
        of_method = [record for record in records if record.method == name]
        psnrs = [record.psnr_db for record in of_method if record.psnr_db is not None]
        speedup, ideal = median(r.speedup for r in of_method), median(r.ideal_speedup for r in of_method)
        counts = [record.granularity_counts for record in of_method if record.granularity_counts]
        rows.append(
            {
                "method": name,
                "seconds": median(r.denoising_seconds for r in of_method),
                "speedup": speedup,
                "ideal": ideal,
                "of_ideal": median(r.speedup / r.ideal_speedup for r in of_method),
                "psnr_db": fmean(psnrs) if psnrs else None,
                "psnr_spread": pstdev(psnrs) if psnrs else None,
                "ssim": fmean(r.ssim for r in of_method),
                "adherence": fmean(r.adherence for r in of_method),
                "cache_kib": max(r.cache_peak_bytes for r in of_method) / 1024,
                "steps": {g: fmean(c[g] for c in counts) for g in counts[0]} if counts else {},
            }
        )
    return rows


def as_json(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records as plain data."""
    return [asdict(record) for record in records]


def margin(speedup: float, psnr: float, fewer: Sequence[tuple[float, float]]) -> float | None:
    """PSNR over that of fewer plain steps taking the same time: `fewer` holds (speed-up, PSNR), joined by lines.

    None outside them.
    """
    points = sorted(fewer)
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if low <= speedup <= high:
            share = (speedup - low) / (high - low)
            return psnr - (at_low + share * (at_high - at_low))
    return None
