"""What the cache did, in figures: `print(handle.summary())` shows them as a small table. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Over the generations in the trace (the newest 100), unless a field says otherwise."""

    policy: str
    num_generations: int
    num_steps: int
    granularity_counts: Mapping[str, int]
    """Steps of each granularity, every granularity named."""
    computed_share: float
    """Block work that ran, of the work of the same calls in full."""
    ideal_speedup: float | None
    """The inverse of that, overhead zero; None where nothing ran."""
    num_non_finite: int
    """Calls whose output had a NaN or an infinity."""
    num_calls_in_full: int
    """Calls that said too little to cache them, since `enable`."""
    wished_speedup: float | None
    """Of the denoising loop, where one was asked for."""
    speedup: float | None
    """Of the newest run's denoising loop, as its own steps tell: had all of them taken what a computed one took in the
    median. None where nothing was computed, or their times have not passed yet."""
    estimate: str | None
    """What the profile says of the PSNR that was asked for; None where none was."""
    num_corrected: int
    """Cached steps taken again with what the next computed one showed."""
    why_not: str | None
    """Why the newest run was not made faster, or less than was asked for; None where it was."""
    held_bytes: int
    """Of all histories now."""
    peak_bytes: int
    """The most that histories and the values set aside for them ever took; of runs at the same time, the sum."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names of the fields."""
        return asdict(self)

    def __getitem__(self, name: str) -> Any:
        """The field of that name; KeyError where there is none."""
        return self.to_dict()[name]

    def __str__(self) -> str:
        """A table; what did not happen is left out of it."""
        counts = ", ".join(f"{count} {name}" for name, count in self.granularity_counts.items() if count)
        faster = "" if self.ideal_speedup is None else f", {self.ideal_speedup:.2f}x at best"
        rows = {
            "policy": self.policy,
            "generations": self.num_generations,
            "steps": f"{self.num_steps} ({counts})" if counts else self.num_steps,
            "speed-up": speedup_text(self.speedup, self.wished_speedup),
            "quality": self.estimate,
            "corrected": f"{self.num_corrected} cached steps" if self.num_corrected else None,
            "work": f"{self.computed_share:.0%} of the blocks ran{faster}",
            "memory": f"{_bytes_text(self.peak_bytes)} at most, {_bytes_text(self.held_bytes)} now",
            "in full": f"{self.num_calls_in_full} calls that said too little" if self.num_calls_in_full else None,
            "not finite": f"{self.num_non_finite} calls, not cached" if self.num_non_finite else None,
            "why not": self.why_not,
        }
        return "\n".join(f"{name:11}  {value}" for name, value in rows.items() if value is not None)


def speedup_text(speedup: float | None, wished: float | None) -> str | None:
    """`"2.03x of the denoising loop (2x wished)"`; None where the speed-up is not known."""
    if speedup is None:
        return None
    return f"{speedup:.2f}x of the denoising loop" + (f" ({wished:g}x wished)" if wished is not None else "")


def _bytes_text(count: float) -> str:
    """`"1.5 MiB"`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
