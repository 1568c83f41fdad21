"""How good a clip is: against a reference (PSNR, SSIM, LPIPS: torchmetrics), and against its caption.

Adherence looks at the clip alone, through the analytic reader `mixcache.zoo.reader`, and only then at the caption.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixcache.zoo import world
from mixcache.zoo.reader import STILL, ObjectReading, Reading, read_clip

__all__ = [
    "STILL",
    "Adherence",
    "CaptionObject",
    "ObjectReading",
    "ParsedCaption",
    "Reading",
    "adherence",
    "parse_caption",
    "read_clip",
    "video_lpips",
    "video_psnr",
    "video_ssim",
]


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


def video_psnr(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    """Peak signal-to-noise ratio in decibels over the whole clip's mean squared error; `math.inf` for identical clips.

    Both have shape (num_frames, height, width, 3) and float values in [0, 1]; anything else raises ValueError.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _as_pair(video, reference)
    return float(peak_signal_noise_ratio(first, second, data_range=1.0))


def video_ssim(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    """Structural similarity, the mean over frames, at most 1 (identical clips).

    Both have shape (num_frames, height, width, 3) and float values in [0, 1], with frames of at least 11 by 11 pixels
    (the window); anything else raises ValueError.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _as_pair(video, reference)
    _, height, width, _ = first.shape
    if min(height, width) < 11:
        raise ValueError(f"frames are {height} by {width} pixels; SSIM needs at least 11 by 11 for its window")
    preds, target = first.float().permute(0, 3, 1, 2), second.float().permute(0, 3, 1, 2)
    return float(structural_similarity_index_measure(preds, target, data_range=1.0))


@functools.cache
def _has_lpips() -> bool:
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    return importlib.util.find_spec("torchvision") is not None and any(checkpoints.glob("alexnet-*.pth"))


def video_lpips(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float | None:
    """Learned perceptual distance (LPIPS, AlexNet), the mean over frames; 0 for identical clips.

    Clips as for `video_psnr`. None where torchvision, or AlexNet's weights in torch's hub folder, are not at hand:
    nothing is downloaded.
    """
    if not _has_lpips():
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    first, second = (clip.float().permute(0, 3, 1, 2).clamp(0, 1) for clip in _as_pair(video, reference))
    return float(learned_perceptual_image_patch_similarity(first, second, net_type="alex", normalize=True))


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


def _as_pair(
    video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (torch.as_tensor(clip).detach() for clip in (video, reference))
    shape = tuple(first.shape)
    if first.shape != second.shape:
        raise ValueError(f"video has shape {shape} but its reference {tuple(second.shape)}; they must be the same")
    if first.ndim != 4 or first.shape[-1] != 3 or 0 in first.shape:
        raise ValueError(f"video has shape {shape}; it must be (num_frames, height, width, 3), none of them 0")
    if not (first.is_floating_point() and second.is_floating_point()):
        raise ValueError(
            f"video has {first.dtype} and its reference {second.dtype} values; they must be floats in [0, 1], "
            "so divide bytes by 255"
        )
    return first.to("cpu", torch.float64), second.to("cpu", torch.float64)
