"""What one clip of a benchmark gave, and how many of them are summed up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, pstdev
from typing import Any

Points = Sequence[tuple[float, float]]
"""Pairs of a speed-up and a quality."""


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
    """If everything but the transformer's blocks cost nothing: the inverse of the share of their work that was done."""
    psnr_db: float | None
    """Against the plain clip; None where the two are identical, or no clip was decoded."""
    ssim: float | None
    cache_peak_bytes: int | None
    """What the method itself says it held; None where it says nothing."""
    granularity_counts: dict[str, int] = field(default_factory=dict)
    repeat: int = 0
    encoding_seconds: float = 0.0
    """Before the loop: text encoder and preparation."""
    decoding_seconds: float = 0.0
    """After the loop: VAE."""
    lpips: float | None = None
    peak_memory_bytes: int | None = None
    """Of the device while the clip was made; None on a CPU, where only the whole process's is known."""
    schedule: str = ""
    """What a policy of ours chose, one letter a step (`mixcache.report.frontier.letters`)."""
    work: str = ""
    """What was really computed, one character a step (`mixcache.bench.meter.work_digits`)."""


def summarise(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per method, in order of appearance: medians of times, means of qualities, spread of the PSNR."""
    return [
        _row(name, [record for record in records if record.method == name])
        for name in dict.fromkeys(record.method for record in records)
    ]


def _row(name: str, records: Sequence[Record]) -> dict[str, Any]:
    psnrs = [record.psnr_db for record in records if record.psnr_db is not None]
    counts = [record.granularity_counts for record in records if record.granularity_counts]
    held = [record.cache_peak_bytes for record in records if record.cache_peak_bytes is not None]
    ratios = [record.speedup / record.ideal_speedup for record in records]
    return {
        "method": name,
        "seconds": median(r.denoising_seconds for r in records),
        "speedup": median(r.speedup for r in records),
        "speedup_spread": pstdev([r.speedup for r in records]),
        "ideal": median(r.ideal_speedup for r in records),
        "of_ideal": median(ratios),
        "psnr_db": fmean(psnrs) if psnrs else None,
        "psnr_spread": pstdev(psnrs) if psnrs else None,
        "ssim": _mean_of_known([r.ssim for r in records]),
        "lpips": _mean_of_known([r.lpips for r in records]),
        "cache_kib": max(held) / 1024 if held else None,
        "steps": {g: fmean(c[g] for c in counts) for g in counts[0]} if counts else {},
    }


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def on_line(points: Points, speedup: float) -> float | None:
    """The quality at a speed-up, on the line between its neighbours; None outside."""
    for (low, at_low), (high, at_high) in itertools.pairwise(sorted(points)):
        if low <= speedup <= high:
            share = (speedup - low) / (high - low) if high > low else 0.0
            return at_low + share * (at_high - at_low)
    return None


def best_at(points: Points, speedup: float) -> float | None:
    """The quality that a careful user gets at a speed-up: of settings that no other beats in both, on the line between
    neighbours; the slowest one serves whoever asks for less. None where no setting is that fast."""
    front = pareto_front(points)
    if front and speedup <= front[0][0]:
        return front[0][1]
    return on_line(front, speedup)


def pareto_front(points: Points) -> list[tuple[float, float]]:
    """Those points that no other beats in speed-up and quality, by rising speed-up."""
    front: list[tuple[float, float]] = []
    for speedup, quality in sorted(points, reverse=True):
        if not front or quality > front[-1][1]:
            front.append((speedup, quality))
    return front[::-1]


Progress = Callable[[int, int], None]
"""Told how many of how many clips are done."""
