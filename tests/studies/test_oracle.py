"""The search of the oracle: its moves, and its page."""

from __future__ import annotations

import random

from mixcache.decision import Granularity, Step
from studies.oracle import Schedule, letters, page, swapped, with_as_many


def test_a_schedule_computes_what_it_is_told() -> None:
    policy = Schedule(computed=(0, 2))
    steps = [Step(index=index, num_steps=4, sigma=1.0) for index in range(4)]
    done = [policy.decide(step, None).granularity is Granularity.COMPUTE for step in steps]
    assert done == [True, False, True, False]


def test_moves_keep_the_count_and_the_ends() -> None:
    draw, schedule = random.Random(0), frozenset({0, 1, 4, 9})
    for _ in range(50):
        moved = swapped(schedule, 10, draw)
        assert len(moved) == 4
        assert len(moved - schedule) == 1
        assert {0, 1, 9} <= moved
    for count in (3, 5, 8):
        near = with_as_many(frozenset(range(0, 10, 2)), count, 10, draw)
        assert len(near) == count
        assert {0, 1, 9} <= near


def test_the_page_says_how_far_the_default_is_behind() -> None:
    row = {"setting": "a", "num_computed": 2, "default": 30.0, "every second": 25.0, "best": 33.5}
    text = page([row | {"schedule": letters(frozenset({0, 2}), 3), "best schedule": "##."}], 60)
    assert "3.5 dB behind" in text
    assert "| a | 2 | 30.0 | 25.0 | 33.5 | `#.#` | `##.` |" in text
