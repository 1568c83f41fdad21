"""The drawn world: scenes of one or two moving shapes, each with a caption from a small grammar.

    caption    = object [" and " object] " on a " pattern " " tone " background"
    object     = "a " size " " colour " " shape " " motion

Clips of them to train on are drawn by training/drawing.py. Positions and lengths are in units of half the frame's
height, so that the same scene can be drawn at any size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "yellow": (0.92, 0.88, 0.10),
    "green": (0.10, 0.75, 0.15),
    "cyan": (0.10, 0.85, 0.88),
    "blue": (0.12, 0.20, 0.92),
    "purple": (0.80, 0.12, 0.85),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (0.22, 0.27), "large": (0.38, 0.44)}
MOTIONS: dict[str, str] = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "growing": "growing",
    "spinning": "spinning",
    "bouncing": "bouncing",
}
PATTERNS = ("plain", "gradient", "chequered")
TONES: dict[str, float] = {"black": 0.08, "grey": 0.45, "white": 0.92}
CHEQUER_CELL = 0.25
HELD_OUT_SHARE = 10
NUM_FRAMES, SIDE = 17, 96
"""Frames of a clip, and height and width in pixels, that the built-in models are made for."""
MAX_SEQUENCE_LENGTH = 24
"""Longest caption: two objects, 18 words and the end mark; the pipeline is called with this `max_sequence_length`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One moving shape; lengths in half frame heights, angles in radians. A spinning one turns clockwise."""

    colour: str
    shape: str
    size: str
    motion: str
    anchor: tuple[float, float]
    amplitude: float
    radius: float
    angle: float
    turn: float

    @property
    def words(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} {MOTIONS[self.motion]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that is needed to draw a clip."""

    objects: tuple[Object, ...]
    pattern: str
    tone: str
    angle: float
    phase: tuple[float, float]

    @property
    def caption(self) -> str:
        return f"{' and '.join(o.words for o in self.objects)} on a {self.pattern} {self.tone} background"


def is_held_out(caption: str) -> bool:
    """True for the tenth of all captions that training never sees; decided by the caption's SHA-256 alone."""
    return hashlib.sha256(caption.encode()).digest()[0] % HELD_OUT_SHARE == 0


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene: two shapes of different colours in three of ten, else one."""
    num_objects = 2 if rng.random() < 0.3 else 1
    colours = rng.permutation(list(COLOURS))[:num_objects]
    axis = int(rng.integers(2))
    sign = 1.0 if rng.random() < 0.5 else -1.0
    objects = []
    for index, colour in enumerate(colours):
        shape = str(rng.choice(SHAPES))
        motions = [m for m in MOTIONS if not (shape == "circle" and m == "spinning")]
        motion = str(rng.choice(motions))
        size = str(rng.choice(list(SIZES)))
        radius = float(rng.uniform(*SIZES[size]))
        anchor = rng.uniform(-0.25, 0.25, size=2)
        amplitude = float(rng.uniform(0.42, 0.52))
        if num_objects == 2:
            radius *= 0.78
            anchor = rng.uniform(-0.1, 0.1, size=2)
            anchor[axis] += sign * (0.52 if index == 0 else -0.52)
            if (motion in ("left", "right") and axis == 0) or (motion in ("up", "down", "bouncing") and axis == 1):
                amplitude *= 0.5
        objects.append(
            Object(
                colour=str(colour),
                shape=shape,
                size=size,
                motion=motion,
                anchor=(float(anchor[0]), float(anchor[1])),
                amplitude=amplitude,
                radius=radius,
                angle=float(rng.uniform(-0.12, 0.12)),
                turn=math.pi * float(rng.uniform(0.95, 1.05)),
            )
        )
    return Scene(
        objects=tuple(objects),
        pattern=str(rng.choice(PATTERNS)),
        tone=str(rng.choice(list(TONES))),
        angle=float(rng.uniform(0, 2 * math.pi)),
        phase=(float(rng.uniform(0, 2)), float(rng.uniform(0, 2))),
    )


def sample_scenes(num_scenes: int, seed: int, *, held_out: bool) -> list[Scene]:
    """`num_scenes` scenes whose captions are all held out, or all not, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < num_scenes:
        scene = sample_scene(rng)
        if is_held_out(scene.caption) == held_out:
            scenes.append(scene)
    return scenes


def held_out_captions(num_captions: int, seed: int = 0) -> list[str]:
    """Different captions that training never saw, in a fixed order for a given seed."""
    captions: dict[str, None] = {}
    rng = np.random.default_rng(seed + 10_007)
    while len(captions) < num_captions:
        caption = sample_scene(rng).caption
        if is_held_out(caption):
            captions.setdefault(caption)
    return list(captions)
