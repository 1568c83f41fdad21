"""How much of its caption a clip of the drawn world shows.

The clip alone is looked at first, through the analytic reader in `reader.py`, and only then the caption.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mixcache.zoo import world
from studies.captions.reader import ObjectReading, read_clip


def _either(words: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(word) for word in words)})"


_MOTION_KEYS = {words: key for key, words in world.MOTIONS.items()}
_OBJECT = re.compile(
    f"a {_either(world.SIZES)} {_either(world.COLOURS)} {_either(world.SHAPES)} {_either(_MOTION_KEYS)}"
)
_CAPTION = re.compile(f"(.+) on a {_either(world.PATTERNS)} {_either(world.TONES)} background")
_MAX_OBJECTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionObject:
    """One object as asked for; `motion` is a key of `world.MOTIONS`."""

    size: str
    colour: str
    shape: str
    motion: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedCaption:
    """A caption of the drawn world, taken apart."""

    objects: tuple[CaptionObject, ...]
    pattern: str
    tone: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Adherence:
    """How much of a caption a clip shows: for each attribute the share of its objects that have it right, in [0, 1]."""

    colour: float
    shape: float
    motion: float
    background: float
    """Half for the pattern, half for the tone."""

    @property
    def mean(self) -> float:
        return (self.colour + self.shape + self.motion + self.background) / 4


Pairs = tuple[tuple[CaptionObject, ObjectReading | None], ...]


def parse_caption(caption: str) -> ParsedCaption:
    """The parts of a caption that `world.Scene.caption` could have written; any other raises ValueError."""
    whole = _CAPTION.fullmatch(caption)
    found = [_OBJECT.fullmatch(words) for words in whole[1].split(" and ")] if whole else []
    objects = [CaptionObject(size=m[1], colour=m[2], shape=m[3], motion=_MOTION_KEYS[m[4]]) for m in found if m]
    if whole is None or len(objects) != len(found) or len(objects) > _MAX_OBJECTS:
        raise ValueError(
            f"caption {caption!r} is not one of the drawn world, such as "
            "'a small red circle moving left and a large blue cross spinning on a plain white background'"
        )
    return ParsedCaption(objects=tuple(objects), pattern=whole[2], tone=whole[3])


def adherence(clip: np.ndarray | torch.Tensor, caption: str) -> Adherence:
    """How much of `caption` the clip of shape (num_frames, height, width, 3), float values in [0, 1], shows.

    The caption's objects are found in the clip by colour. One whose colour is not there is compared, for shape and
    motion, with an object that is left over, if any. Objects that were not asked for cost nothing. Raises ValueError
    for a caption outside the grammar or a clip of another shape.
    """
    asked = parse_caption(caption)
    seen = read_clip(clip)
    pairs = _pair(asked.objects, seen.objects)
    num_objects = len(pairs)
    return Adherence(
        colour=sum(got is not None and got.colour == want.colour for want, got in pairs) / num_objects,
        shape=sum(got is not None and got.shape == want.shape for want, got in pairs) / num_objects,
        motion=sum(got is not None and got.motion == want.motion for want, got in pairs) / num_objects,
        background=((seen.pattern == asked.pattern) + (seen.tone == asked.tone)) / 2,
    )


def _pair(asked: Sequence[CaptionObject], seen: Sequence[ObjectReading]) -> Pairs:
    """Each object of the caption with one of the clip: by colour, and left-over ones so that they agree in most."""
    ways = itertools.permutations((*seen, *[None] * len(asked)), len(asked))
    return max((tuple(zip(asked, chosen, strict=True)) for chosen in ways), key=_agreement)


def _agreement(pairs: Pairs) -> tuple[int, int]:
    found = [(want, got) for want, got in pairs if got is not None]
    in_form = sum((want.shape == got.shape) + (want.motion == got.motion) for want, got in found)
    return sum(want.colour == got.colour for want, got in found), in_form
