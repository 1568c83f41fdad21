"""Reads a clip of the drawn world back, from its pixels alone: what the background is, what each object is and does.

Backgrounds are grey and objects are not, so an object is what has a hue. Each hue is one object, because two objects of
a scene never share a colour. Shapes are told by turned templates, motions by the track of centre and radius. Lengths
are in half frame heights, as in `mixcache.zoo.world`; `u` is time in [0, 1].

Legend of shapes: F frames, H height, W width, P patch side, A angles.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mixcache.zoo import world
from training.drawing import signed_distance

STILL = "still"

_MAX_OBJECTS = 2  # the grammar has no third
_MAX_ROWS = 128  # taller clips are averaged down first
_STRONG = 0.2  # length of the hue vector from which a pixel is coloured; full objects have 0.51 to 0.65
_MIN_SHARE = 0.0025  # of a frame's pixels, for an object to be there; the smallest drawn object has 0.007
_MIN_PRESENCE = 0.5  # of the frames
_FAINT = 0.15  # opacity below which a pixel is not the object's

_PATCH = 32
_REACH = 1.8  # half side of a patch in units of the radius of the circle of the same area
_BLURS = (0.0, 0.1, 0.2, 0.35, 0.5)  # in the same unit
_ANGLES = {  # how many templates, and the turn after which the shape is itself again
    "circle": (1, math.tau),
    "square": (12, math.pi / 2),
    "triangle": (16, math.tau / 3),
    "cross": (12, math.pi / 2),
}
_TURNS = torch.linspace(-1.5, 1.5, 13) * math.pi  # over the whole clip; drawn objects turn by half a circle

# What counts as a motion; the least that is drawn is about twice as much.
_MOVED = 0.21  # displacement
_GREW = 0.4  # change of radius over mean radius
_TURNED = 0.5 * math.pi
_BOUNCED = 0.04  # standard deviation of the height around its straight line
_TURN_GAIN = 0.012  # by how much turning must explain the masks better than resting


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectReading:
    """One object as seen: keys of `world.COLOURS`, `SHAPES` and `MOTIONS` (or "still")."""

    colour: str
    shape: str
    motion: str
    score: float
    """How well the shape fits: mean correlation of its masks with the best template, at most 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A clip as seen; objects by falling share of the picture."""

    pattern: str
    tone: str
    objects: tuple[ObjectReading, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Track:
    """Where one object is in every frame: all of shape (F,)."""

    x: torch.Tensor
    y: torch.Tensor
    radius: torch.Tensor
    weight: torch.Tensor
    """In [0, 1]: small where the frame's border or another object cuts the mask, so that centre and area mislead."""


def read_clip(clip: np.ndarray | torch.Tensor) -> Reading:
    """What a clip of shape (num_frames, height, width, 3) with float values in [0, 1] shows.

    A clip without a coloured object has no objects in its reading. Raises ValueError for another shape, for integers,
    and for values that are not finite or far outside.
    """
    frames = _as_frames(clip)
    num_frames, height, width, _ = frames.shape
    pixel = 2.0 / height
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) * pixel - 1, (torch.arange(width) + 0.5) * pixel - width / height, indexing="ij"
    )
    u = torch.linspace(0, 1, num_frames)
    grey = frames.mean(-1)
    hues = _without_tint(frames - grey[..., None])
    strong = _strong(hues)
    colours = _colours(hues, strong)
    opacities = _opacities(hues, strong, colours)
    pattern, tone = _read_background(grey, strong, opacities, x, y)
    objects = []
    for index, colour in enumerate(colours):
        others = torch.cat([opacities[:index], opacities[index + 1 :]])
        track = _follow(opacities[index], others, x, y, pixel)
        shape, score, turn = _read_shape(opacities[index], track, u)
        objects.append(ObjectReading(colour=colour, shape=shape, motion=_read_motion(track, turn, u), score=score))
    return Reading(pattern=pattern, tone=tone, objects=tuple(objects))


def _as_frames(clip: np.ndarray | torch.Tensor) -> torch.Tensor:
    frames = torch.as_tensor(clip).detach()
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"clip has shape {tuple(frames.shape)}; it must be (num_frames, height, width, 3), none of them 0"
        )
    if not frames.is_floating_point():
        raise ValueError(f"clip has {frames.dtype} values; they must be floats in [0, 1], so divide bytes by 255")
    frames = frames.to("cpu", torch.float32)
    least, most = frames.aminmax()
    if not (least > -0.5 and most < 1.5):  # also true of NaN
        raise ValueError(
            f"clip has values from {float(least):.3g} to {float(most):.3g}; they must be finite and in [0, 1]"
        )
    factor = -(-frames.shape[1] // _MAX_ROWS)
    if factor > 1 and frames.shape[2] >= factor:
        frames = functional.avg_pool2d(frames.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    return frames.contiguous()


def _strong(hues: torch.Tensor) -> torch.Tensor:
    return hues.square().sum(-1) > _STRONG**2


def _without_tint(hues: torch.Tensor) -> torch.Tensor:
    """Hue vectors (F, H, W, 3) less what a slightly coloured background adds to all."""
    faint = hues[~_strong(hues)]
    return hues - faint.median(0).values if len(faint) else hues


def _directions(colours: list[str]) -> torch.Tensor:
    """Unit hue vectors of the named colours: shape (num_colours, 3)."""
    palette = torch.tensor([world.COLOURS[colour] for colour in colours])
    return functional.normalize(palette - palette.mean(-1, keepdim=True), dim=-1)


def _colours(hues: torch.Tensor, strong: torch.Tensor) -> list[str]:
    """The colours that cover enough of enough frames, largest first."""
    palette = _directions(list(world.COLOURS))
    nearest = (hues @ palette.T).argmax(-1)
    masks = torch.stack([(nearest == index) & strong for index in range(len(palette))], dim=1)
    solid = functional.avg_pool2d(masks.float(), 3, stride=1, padding=1) > 0.5  # mixed hues along an outline are not
    shares = (solid & masks).float().mean(dim=(2, 3))
    presence = (shares > _MIN_SHARE).float().mean(0)
    order = shares.mean(0).argsort(descending=True).tolist()
    names = list(world.COLOURS)
    return [names[index] for index in order if presence[index] >= _MIN_PRESENCE][:_MAX_OBJECTS]


def _opacities(hues: torch.Tensor, strong: torch.Tensor, colours: list[str]) -> torch.Tensor:
    """How much of each pixel is each object's, in [0, 1]: shape (num_objects, F, H, W).

    A pixel is (1 - opacity) * grey + opacity * colour, so its hue vector is the opacity times the colour's hue vector,
    which is measured in the clip, not taken from the palette.
    """
    if not colours:
        return hues.new_zeros(0, *hues.shape[:-1])
    owner = (hues @ _directions(colours).T).argmax(-1)
    measured = []
    for index in range(len(colours)):
        own = hues[strong & (owner == index)]
        direction = functional.normalize((own * own.norm(dim=-1, keepdim=True)).sum(0), dim=0)
        measured.append(direction / (own @ direction).quantile(0.7).clamp_min(_STRONG))
    share = (hues @ torch.stack(measured, dim=-1)).movedim(-1, 0)
    own = share * ((share == share.amax(0)) & (share > _FAINT))
    # Haze away from anything solid is not the object's.
    beside_core = functional.max_pool2d((own > 0.5).float(), 5, stride=1, padding=2)
    return (own * beside_core).clamp(max=1)


def _follow(opacity: torch.Tensor, others: torch.Tensor, x: torch.Tensor, y: torch.Tensor, pixel: float) -> _Track:
    mask = opacity
    for _ in range(2):  # the second time without specks far from the object
        area = mask.sum((1, 2)).clamp_min(1e-3)
        centre_x = (mask * x).sum((1, 2)) / area
        centre_y = (mask * y).sum((1, 2)) / area
        radius = pixel * (area / math.pi).sqrt()
        distance = torch.hypot(x - centre_x[:, None, None], y - centre_y[:, None, None])
        mask = opacity * (distance < 2 * radius[:, None, None])
    cut = torch.zeros_like(opacity)
    cut[:, [0, -1], :] = 1
    cut[:, :, [0, -1]] = 1
    if len(others):
        cut = torch.maximum(cut, functional.max_pool2d(others.amax(0)[:, None], 3, stride=1, padding=1)[:, 0])
    contact = pixel * (opacity * cut).sum((1, 2)) / radius.clamp_min(pixel)
    there = area * pixel**2 > _MIN_SHARE * 2 * pixel * x.shape[1]
    weight = torch.where(there, 1 / (1 + (contact / 0.3) ** 2), 1e-6)
    return _Track(x=centre_x, y=centre_y, radius=radius, weight=weight)


@functools.cache
def _templates(shape: str) -> torch.Tensor:
    """Masks of a shape with the area of the unit circle, centred and of unit length: shape (len(_BLURS), A, P * P)."""
    fine = 3
    line = ((torch.arange(_PATCH * fine) + 0.5) / (_PATCH * fine) * 2 - 1) * _REACH
    y, x = torch.meshgrid(line, line, indexing="ij")
    step = 2 * _REACH / (_PATCH * fine)
    area = (signed_distance(shape, x, y, torch.tensor(1.0)) < 0).sum() * step**2
    num_angles, period = _ANGLES[shape]
    angles = (torch.arange(num_angles) * (period / num_angles))[:, None, None]
    cos, sin = angles.cos(), angles.sin()
    distance = signed_distance(shape, cos * x + sin * y, cos * y - sin * x, (math.pi / area).sqrt())
    sharp = functional.avg_pool2d((distance < 0).float()[:, None], fine)[:, 0]
    apart = (torch.arange(_PATCH)[:, None] - torch.arange(_PATCH)) * (2 * _REACH / _PATCH)
    blurred = []
    for blur in _BLURS:
        spread = torch.exp(-0.5 * (apart / max(blur, 1e-2)) ** 2)
        spread = spread / spread.sum(-1, keepdim=True)
        blurred.append(spread @ sharp @ spread.T)
    return _centred(torch.stack(blurred).flatten(-2))


def _centred(masks: torch.Tensor) -> torch.Tensor:
    return functional.normalize(masks - masks.mean(-1, keepdim=True), dim=-1)


def _read_shape(opacity: torch.Tensor, track: _Track, u: torch.Tensor) -> tuple[str, float, float]:
    """The shape, its score, and the angle by which it turns over the clip (0 where turning explains nothing)."""
    height, width = opacity.shape[1:]
    line = ((torch.arange(_PATCH) + 0.5) / _PATCH * 2 - 1) * _REACH
    patch_y, patch_x = torch.meshgrid(line, line, indexing="ij")
    x, y, radius = (values[:, None, None] for values in (track.x, track.y, track.radius))
    grid = torch.stack([(x + radius * patch_x) * (height / width), y + radius * patch_y], dim=-1)
    patches = functional.grid_sample(opacity[:, None], grid, align_corners=False)[:, 0].flatten(1)
    weight = track.weight * track.radius
    weight = weight / weight.sum()
    best = ("", -math.inf, 0.0)
    for shape in world.SHAPES:
        scores = torch.einsum("fp,bap->fba", _centred(patches), _templates(shape)).amax(1)
        by_turn = _scores_by_turn(scores, weight, u, _ANGLES[shape][1])
        resting = float(by_turn[len(_TURNS) // 2])
        score, index = float(by_turn.max()), int(by_turn.argmax())
        if score > best[1]:
            best = (shape, score, float(_TURNS[index]) if score - resting > _TURN_GAIN else 0.0)
    return best


def _scores_by_turn(scores: torch.Tensor, weight: torch.Tensor, u: torch.Tensor, period: float) -> torch.Tensor:
    """For each of `_TURNS`, the weighted mean over frames of `scores` (F, A) along it, from the best first angle."""
    num_frames, num_angles = scores.shape
    passed = (_TURNS[:, None] * u * (num_angles / period)).round().long()
    angles = (torch.arange(num_angles)[None, :, None] + passed[:, None, :]) % num_angles
    return (scores[torch.arange(num_frames), angles] * weight).sum(-1).amax(-1)


def _read_motion(track: _Track, turn: float, u: torch.Tensor) -> str:
    """The motion with the most evidence, each in units of what counts as one; "still" where none counts."""
    moved_x, _ = _straight_line(u, track.x, track.weight)
    moved_y, bounced = _straight_line(u, track.y, track.weight)
    grown, _ = _straight_line(u, track.radius, track.weight)
    mean_radius = float((track.radius * track.weight).sum() / track.weight.sum())
    evidence = {
        "left": -moved_x / _MOVED,
        "right": moved_x / _MOVED,
        "up": -moved_y / _MOVED,
        "down": moved_y / _MOVED,
        "growing": grown / mean_radius / _GREW,
        "spinning": abs(turn) / _TURNED,
        "bouncing": bounced / _BOUNCED,
    }
    motion = max(evidence, key=lambda name: evidence[name])
    return motion if evidence[motion] >= 1 else STILL


def _straight_line(u: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Rise over the whole clip of the weighted straight line, and the standard deviation around it."""
    share = (weight / weight.sum()).double()
    u, values = u.double(), values.double()
    u = u - (share * u).sum()
    values = values - (share * values).sum()
    rise = (share * u * values).sum() / (share * u * u).sum().clamp_min(1e-9)
    return float(rise), float((share * (values - rise * u) ** 2).sum().sqrt())


def _read_background(
    grey: torch.Tensor, strong: torch.Tensor, opacities: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[str, str]:
    """Pattern and tone, by least squares away from objects: a level, a slope and the chequers' first harmonic."""
    coloured = strong.float()
    if len(opacities):
        coloured = torch.maximum(coloured, (opacities.amax(0) > 0).float())
    free = (1 - functional.max_pool2d(coloured[:, None], 5, stride=1, padding=2)[:, 0]).flatten(1) + 1e-4
    waves = [(math.pi / world.CHEQUER_CELL * line).flatten() for line in (x, y)]
    chequers = [a * b for a in (waves[0].sin(), waves[0].cos()) for b in (waves[1].sin(), waves[1].cos())]
    basis = torch.stack([torch.ones_like(waves[0]), x.flatten(), y.flatten(), *chequers], dim=-1)
    products = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    normal = (free @ products).unflatten(1, (basis.shape[1], -1))
    ridge = 1e-6 * len(basis) * torch.eye(basis.shape[1])  # for frames too small to tell all these apart
    fit = torch.linalg.solve(normal + ridge, (free * grey.flatten(1)) @ basis)
    # A drawn slope is 1.4 * 0.22 / 2.83, and drawn chequers, +-0.11, have a first harmonic of 0.11 * (4 / pi) ** 2.
    evidence = {
        "gradient": float(fit[:, 1:3].norm(dim=-1).median()) / 0.109,
        "chequered": float(fit[:, 3:].norm(dim=-1).median()) / 0.178,
        "plain": 0.4,
    }
    pattern = max(evidence, key=lambda name: evidence[name])
    towards_other = {"plain": 0.0, "gradient": 0.7 * 0.22, "chequered": 0.5 * 0.22}[pattern]
    level = float(fit[:, 0].median())
    expected = {name: tone + (towards_other if tone < 0.6 else -towards_other) for name, tone in world.TONES.items()}
    return pattern, min(expected, key=lambda name: abs(expected[name] - level))
