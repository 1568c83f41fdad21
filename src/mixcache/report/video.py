"""Clips as files and pictures: an mp4, two clips side by side, the difference of two clips.

A clip is a float array (num_frames, height, width, 3) with values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]

GAP_LIGHTNESS = 0.92
CONSTANT_RATE_FACTOR = 14
"""x264's quality: 0 is lossless, 17 looks so; small drawn clips stay small."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipPair:
    """The same clip denoised twice; both (num_frames, height, width, 3) in [0, 1]. ValueError if the shapes differ."""

    plain: Clip
    """Without a cache."""
    cached: Clip
    """With the cache."""

    def __post_init__(self) -> None:
        _check_equal_shapes([self.plain, self.cached])


def to_bytes(clip: Clip) -> Bytes:
    """The clip as uint8, rounded; values outside [0, 1] are clipped, NaN is black. ValueError for any other shape."""
    _check_clip(clip)
    finite = np.nan_to_num(np.asarray(clip, dtype=np.float32), nan=0.0)
    return np.asarray(np.rint(np.clip(finite, 0.0, 1.0) * 255.0), dtype=np.uint8)


def write_mp4(clip: Clip, path: str | Path, *, fps: int = 8, scale: int = 1) -> None:
    """Write the clip as H.264 in yuv420p, which every browser plays.

    `scale` enlarges by whole pixels (nearest neighbour), so that small clips stay sharp and keep their colours through
    the halved chroma. An odd height or width, which yuv420p cannot hold, gets its last row or column twice. ValueError
    for a clip of another shape or without frames, and for `fps` or `scale` below 1.
    """
    for name, value in (("fps", fps), ("scale", scale)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    frames = to_bytes(clip).repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")

    import imageio.v2 as imageio

    writer = imageio.get_writer(
        str(path),
        format="FFMPEG",  # named, so that another installed plugin never takes over
        mode="I",
        fps=fps,
        codec="libx264",
        pixelformat="yuv420p",
        quality=None,
        macro_block_size=1,  # the sizes are even by now; the default would resize to multiples of 16
        ffmpeg_log_level="error",
        output_params=["-crf", str(CONSTANT_RATE_FACTOR), "-movflags", "+faststart"],
    )
    with writer:
        for frame in frames:
            writer.append_data(frame)


def side_by_side(clips: Sequence[Clip], *, gap: int = 2) -> Clip:
    """The clips joined left to right with `gap` light pixels between, as float32.

    The shape is (num_frames, height, sum of widths and gaps, 3).
    ValueError if there is no clip, the shapes differ, or `gap` is negative.
    """
    if gap < 0:
        raise ValueError(f"gap must be at least 0, got {gap}")
    _check_equal_shapes(clips)
    num_frames, height, _, _ = clips[0].shape
    light = np.full((num_frames, height, gap, 3), GAP_LIGHTNESS, dtype=np.float32)
    parts = [np.asarray(part, dtype=np.float32) for clip in clips for part in (light, clip)]
    return np.concatenate(parts[1:], axis=2)


def amplified_difference(a: Clip, b: Clip, *, gain: float = 8) -> Clip:
    """`|a - b| * gain`, clipped to [0, 1], as float32: black where the clips agree.

    ValueError if the shapes differ or `gain` is not positive.
    """
    if gain <= 0:
        raise ValueError(f"gain must be positive, got {gain}")
    _check_equal_shapes([a, b])
    return np.clip(
        np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)) * np.float32(gain), 0.0, 1.0
    )


def _check_clip(clip: Clip) -> None:
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(
            f"a clip is (num_frames, height, width, 3) with at least one pixel, got shape {tuple(clip.shape)}"
        )


def _check_equal_shapes(clips: Sequence[Clip]) -> None:
    if not clips:
        raise ValueError("there is no clip to show; give at least one")
    for clip in clips:
        _check_clip(clip)
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(f"the clips must have one shape, got {' and '.join(str(tuple(clip.shape)) for clip in clips)}")


def film_names(index: int) -> dict[str, str]:
    """File names of a clip's films, by kind."""
    return {kind: f"clip-{index}-{kind.replace('_', '-')}.mp4" for kind in ("plain", "cached", "side_by_side")}
