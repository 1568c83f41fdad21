"""Draws scenes of `mixcache.zoo.world`: from signed distances, with one pixel of anti-aliasing, at any size and length.

Positions and lengths are in units of half the frame's height; `u` is time in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mixcache.zoo import world


def _path(motion: str, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Offset from the anchor in units of the amplitude; y points down."""
    still, sweep = torch.zeros_like(u), 2 * u - 1
    if motion == "left":
        return -sweep, still
    if motion == "right":
        return sweep, still
    if motion == "up":
        return still, -sweep
    if motion == "down":
        return still, sweep
    if motion == "bouncing":
        return still, 0.8 - 1.6 * torch.sin(2 * math.pi * u).abs()
    return still, still


def _background(scene: world.Scene, x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    tone = world.TONES[scene.tone]
    if scene.pattern == "plain":
        return torch.full_like(x, tone)
    other = tone + (0.22 if tone < 0.6 else -0.22)
    if scene.pattern == "gradient":
        share = (math.cos(scene.angle) * x + math.sin(scene.angle) * y) / 2.83 + 0.5
        return tone + (other - tone) * 1.4 * share.clamp(0, 1)
    waves = []
    for coordinate, phase in ((x, scene.phase[0]), (y, scene.phase[1])):
        position = torch.remainder(coordinate / world.CHEQUER_CELL + phase, 2.0)
        distance = torch.where(
            position < 1, torch.minimum(position, 1 - position), -torch.minimum(position - 1, 2 - position)
        )
        waves.append((distance * world.CHEQUER_CELL / pixel).clamp(-1, 1))
    share = 0.5 + 0.5 * waves[0] * waves[1]
    return tone + (other - tone) * share


def draw(
    scene: world.Scene, *, num_frames: int = world.NUM_FRAMES, height: int = world.SIDE, width: int = world.SIDE
) -> torch.Tensor:
    """The clip of a scene: float32 of shape (num_frames, height, width, 3), values in [0, 1]."""
    pixel = 2.0 / height
    ys = (torch.arange(height) + 0.5) * pixel - 1
    xs = (torch.arange(width) + 0.5) * pixel - width / height
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    clip = _background(scene, x, y, pixel)[None, :, :, None].expand(num_frames, height, width, 3).clone()
    u = torch.linspace(0, 1, num_frames)[:, None, None]
    for thing in scene.objects:
        dx, dy = _path(thing.motion, u)
        px = x[None] - (thing.anchor[0] + thing.amplitude * dx)
        py = y[None] - (thing.anchor[1] + thing.amplitude * dy)
        angle = thing.angle + (thing.turn * u if thing.motion == "spinning" else torch.zeros_like(u))
        cos, sin = torch.cos(angle), torch.sin(angle)
        radius = thing.radius * (0.55 + 0.75 * u) if thing.motion == "growing" else thing.radius * torch.ones_like(u)
        distance = signed_distance(thing.shape, cos * px + sin * py, -sin * px + cos * py, radius)
        coverage = (0.5 - distance / pixel).clamp(0, 1)[..., None]
        clip = clip * (1 - coverage) + coverage * torch.tensor(world.COLOURS[thing.colour])
    return clip


def draw_batch(
    scenes: Sequence[world.Scene],
    *,
    num_frames: int = world.NUM_FRAMES,
    height: int = world.SIDE,
    width: int = world.SIDE,
) -> torch.Tensor:
    """Clips as a model takes them: shape (num_scenes, 3, num_frames, height, width), values in [-1, 1]."""
    clips = torch.stack([draw(s, num_frames=num_frames, height=height, width=width) for s in scenes])
    return clips.permute(0, 4, 1, 2, 3) * 2 - 1


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Distance to the outline of an upright shape at the origin, negative inside; all shapes have about the area of
    the circle."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.886 * radius
    if shape == "triangle":
        inner = 0.74 * radius
        slanted = 0.8660254 * x.abs() - 0.5 * y
        return torch.maximum(slanted, y) - inner
    if shape == "cross":
        length, width = 1.2 * radius, 0.42 * radius
        return torch.minimum(
            torch.maximum(x.abs() - length, y.abs() - width), torch.maximum(x.abs() - width, y.abs() - length)
        )
    raise ValueError(f"unknown shape {shape!r}; the world has {', '.join(world.SHAPES)}")
