"""A clip as a row of evenly spaced frames, each a data URI."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from mixcache.report.video import Bytes, Clip, ClipPair, amplified_difference, to_bytes

NUM_FRAMES = 6
DIFFERENCE_GAIN = 8
MAX_WIDTH = 320
"""Wider frames are reduced to this and stored as JPEG, so that a page of large clips can still be mailed; in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One labelled row of frames."""

    label: str
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """The rows of a pair of clips under one another: plain, cached, amplified difference."""

    frame_numbers: tuple[int, ...]
    strips: tuple[Strip, ...]
    pixelated: bool
    """True where the frames are small and are enlarged without smoothing."""


def spread(num_frames: int, num_shown: int = NUM_FRAMES) -> tuple[int, ...]:
    """Up to `num_shown` different frame indices from the first to the last, evenly spaced."""
    indices = np.linspace(0, num_frames - 1, min(num_shown, num_frames)).round().astype(int)
    return tuple(int(index) for index in indices)


def film(pair: ClipPair) -> Film:
    """The strips of a pair."""
    shown = spread(len(pair.plain))
    index = list(shown)
    difference = amplified_difference(pair.plain[index], pair.cached[index], gain=DIFFERENCE_GAIN)
    return Film(
        frame_numbers=shown,
        strips=(
            Strip(label="Plain", uris=image_uris(pair.plain[index])),
            Strip(label="Cached", uris=image_uris(pair.cached[index])),
            Strip(label=f"Difference ×{DIFFERENCE_GAIN}", uris=image_uris(difference)),
        ),
        pixelated=pair.plain.shape[2] <= MAX_WIDTH,
    )


def data_uri(content: bytes, media_type: str) -> str:
    """The content as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def image_uris(clip: Clip) -> tuple[str, ...]:
    return tuple(_image_uri(frame) for frame in to_bytes(clip))


def _image_uri(frame: Bytes) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    content = io.BytesIO()
    if image.width <= MAX_WIDTH:
        image.save(content, format="PNG", optimize=True)
        return data_uri(content.getvalue(), "image/png")
    height = max(1, round(image.height * MAX_WIDTH / image.width))
    image.resize((MAX_WIDTH, height), Image.Resampling.BOX).save(content, format="JPEG", quality=88)
    return data_uri(content.getvalue(), "image/jpeg")
