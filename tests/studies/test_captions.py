"""The reader of the drawn world, and what it finds of a caption, against scenes that are known."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from mixcache.zoo import world
from studies.captions import Adherence, CaptionObject, ParsedCaption, adherence, parse_caption
from studies.captions.reader import STILL, read_clip
from training import drawing

RED_CIRCLE = world.Object(
    colour="red",
    shape="circle",
    size="large",
    motion="left",
    anchor=(0, 0),
    amplitude=0.45,
    radius=0.3,
    angle=0,
    turn=math.pi,
)

UPPER = dataclasses.replace(RED_CIRCLE, anchor=(0.0, -0.5))
LOWER = dataclasses.replace(RED_CIRCLE, anchor=(0.0, 0.5), colour="blue", shape="square", motion="growing", radius=0.25)


def scene(*objects: world.Object, pattern: str = "plain", tone: str = "white") -> world.Scene:
    return world.Scene(objects=objects, pattern=pattern, tone=tone, angle=0.5, phase=(0.3, 0.8))


def shares_right(scenes: Iterable[world.Scene], draw: Callable[[world.Scene], torch.Tensor]) -> dict[str, float]:
    """For each attribute, the share of scenes or objects that the reader gets right from the drawn clip."""
    right = defaultdict(list)
    for drawn in scenes:
        reading = read_clip(draw(drawn))
        right["pattern"].append(reading.pattern == drawn.pattern)
        right["tone"].append(reading.tone == drawn.tone)
        right["number"].append(len(reading.objects) == len(drawn.objects))
        seen = {thing.colour: thing for thing in reading.objects}
        for thing in drawn.objects:
            found = seen.get(thing.colour)
            right["colour"].append(found is not None)
            right["shape"].append(found is not None and found.shape == thing.shape)
            right["motion"].append(found is not None and found.motion == thing.motion)
    return {attribute: sum(hits) / len(hits) for attribute, hits in right.items()}


def blurred_and_noisy(drawn: world.Scene) -> torch.Tensor:
    clip = drawing.draw(drawn)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / 0.8) ** 2)
    taps = taps / taps.sum()
    flat = torch.nn.functional.pad(clip.permute(0, 3, 1, 2).flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
    flat = torch.nn.functional.conv2d(torch.nn.functional.conv2d(flat, taps.view(1, 1, 7, 1)), taps.view(1, 1, 1, 7))
    soft = flat.unflatten(0, (len(clip), 3))[:, :, 0].permute(0, 2, 3, 1)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (soft + 0.03 * noise).clamp(0, 1)


@pytest.mark.parametrize("num_scenes", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_reader_is_right_on_drawn_clips(num_scenes: int) -> None:
    shares = shares_right(world.sample_scenes(num_scenes, seed=11, held_out=True), drawing.draw)
    assert min(shares.values()) >= 0.99, shares


@pytest.mark.parametrize("num_scenes", [6, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("num_frames", "height", "width"), [(25, 96, 96), (17, 64, 112), (9, 48, 48), (5, 160, 160)])
def test_reader_is_right_at_other_sizes(num_frames: int, height: int, width: int, num_scenes: int) -> None:
    scenes = world.sample_scenes(num_scenes, seed=12, held_out=True)
    shares = shares_right(scenes, lambda s: drawing.draw(s, num_frames=num_frames, height=height, width=width))
    assert min(shares.values()) >= 0.99, shares


@pytest.mark.parametrize("num_scenes", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_reader_stands_blur_and_noise(num_scenes: int) -> None:
    shares = shares_right(world.sample_scenes(num_scenes, seed=13, held_out=True), blurred_and_noisy)
    assert min(shares.values()) >= 0.97, shares


@pytest.mark.parametrize("colour", world.COLOURS)
def test_each_colour_is_read_as_itself(colour: str) -> None:
    reading = read_clip(drawing.draw(scene(dataclasses.replace(RED_CIRCLE, colour=colour))))
    assert [thing.colour for thing in reading.objects] == [colour]


def test_resting_object_and_frozen_clip_are_still() -> None:
    clip = drawing.draw(scene(dataclasses.replace(RED_CIRCLE, shape="square", motion="spinning")))
    assert read_clip(clip).objects[0].motion == "spinning"
    assert read_clip(clip[:1].expand_as(clip)).objects[0].motion == STILL
    assert read_clip(clip[:1]).objects[0].motion == STILL


def test_reversed_clip_moves_the_other_way() -> None:
    clip = drawing.draw(scene(RED_CIRCLE))
    assert read_clip(clip).objects[0].motion == "left"
    assert read_clip(clip.flip(0)).objects[0].motion == "right"
    assert read_clip(clip.transpose(1, 2)).objects[0].motion == "up"


def test_object_that_leaves_the_frame_does_not_grow() -> None:
    leaving = dataclasses.replace(RED_CIRCLE, anchor=(0.5, 0.2), motion="right", radius=0.44)
    assert read_clip(drawing.draw(scene(leaving))).objects[0].motion == "right"


def test_empty_clip_has_a_background_and_no_objects() -> None:
    reading = read_clip(np.full((5, 64, 64, 3), 0.45, dtype=np.float32))
    assert (reading.pattern, reading.tone, reading.objects) == ("plain", "grey", ())
    assert adherence(
        np.full((5, 64, 64, 3), 0.45), "a small red circle growing on a plain black background"
    ) == Adherence(colour=0.0, shape=0.0, motion=0.0, background=0.5)


@pytest.mark.parametrize("side", [1, 4, 12])
def test_tiny_frames_are_read_without_an_error(side: int) -> None:
    assert read_clip(drawing.draw(scene(RED_CIRCLE), num_frames=3, height=side, width=side)).pattern in world.PATTERNS


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.zeros(64, 64, 3), r"clip has shape \(64, 64, 3\)"),
        (torch.zeros(3, 17, 64, 64), r"must be \(num_frames, height, width, 3\)"),
        (torch.zeros(0, 64, 64, 3), "none of them 0"),
        (np.zeros((2, 64, 64, 3), dtype=np.uint8), "divide bytes by 255"),
        (torch.full((2, 64, 64, 3), -1.0), r"values from -1 to -1; they must be finite and in \[0, 1\]"),
        (torch.full((2, 64, 64, 3), math.nan), "they must be finite"),
    ],
)
def test_reader_refuses_what_is_no_clip(clip: np.ndarray | torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_clip(clip)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1.0, 1.0, 1.0)),
        ({"colour": "green"}, (0.0, 1.0, 1.0)),
        ({"shape": "cross"}, (1.0, 0.0, 1.0)),
        ({"motion": "bouncing"}, (1.0, 1.0, 0.0)),
        ({"colour": "blue", "shape": "triangle", "motion": "growing"}, (0.0, 0.0, 0.0)),
    ],
)
def test_adherence_of_a_clip_that_shows_something_else(
    changes: dict[str, str], expected: tuple[float, float, float]
) -> None:
    shown = scene(dataclasses.replace(RED_CIRCLE, **changes))  # type: ignore[arg-type]
    got = adherence(drawing.draw(shown), scene(RED_CIRCLE).caption)
    assert (got.colour, got.shape, got.motion, got.background) == (*expected, 1.0)


def test_adherence_of_two_objects_is_a_share() -> None:
    other = dataclasses.replace(LOWER, colour="yellow", motion="spinning")
    asked = scene(UPPER, LOWER, pattern="gradient", tone="black").caption
    assert adherence(drawing.draw(scene(LOWER, UPPER, pattern="gradient", tone="black")), asked).mean == 1.0
    got = adherence(drawing.draw(scene(UPPER, other, pattern="gradient", tone="white")), asked)
    assert got == Adherence(colour=0.5, shape=1.0, motion=0.5, background=0.5)
    assert got.mean == pytest.approx(0.625)
    alone = adherence(drawing.draw(scene(UPPER, pattern="chequered", tone="grey")), asked)
    assert alone == Adherence(colour=0.5, shape=0.5, motion=0.5, background=0.0)


def test_left_over_objects_are_paired_by_what_agrees() -> None:
    shown = scene(dataclasses.replace(LOWER, colour="green"), dataclasses.replace(UPPER, colour="yellow"))
    got = adherence(drawing.draw(shown), scene(UPPER, LOWER).caption)
    assert got == Adherence(colour=0.0, shape=1.0, motion=1.0, background=1.0)


def test_captions_of_scenes_parse_back() -> None:
    for drawn in world.sample_scenes(100, seed=1, held_out=False):
        assert parse_caption(drawn.caption) == ParsedCaption(
            objects=tuple(
                CaptionObject(size=o.size, colour=o.colour, shape=o.shape, motion=o.motion) for o in drawn.objects
            ),
            pattern=drawn.pattern,
            tone=drawn.tone,
        )


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a cat on a plain white background",
        "a small red circle moving left",
        "a small red circle moving left on a plain pink background",
        "a small red circle moving left and a cat on a plain white background",
        "A small red circle moving left on a plain white background",
        " and ".join(["a small red circle moving left"] * 3) + " on a plain white background",
    ],
)
def test_captions_outside_the_grammar_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="is not one of the drawn world"):
        parse_caption(caption)
