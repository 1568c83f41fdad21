"""The page of the hard settings, from made-up clips."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mixcache.bench.families import select
from studies.hard_page import FIXED, METHODS, OURS, at, bars, is_in_reach, page, pooled_rows


def setting(*methods: tuple[str, float, list[float]]) -> dict[str, Any]:
    return {
        "model": "small",
        "half": 25.0,
        "bfloat16": 40.0,
        "change": 0.05,
        "plain_adherence": 0.9,
        "methods": [
            {"family": family, "name": f"{family} {share}", "values": [(share, psnr, 0.8) for psnr in decibels]}
            for family, share, decibels in methods
        ],
    }


@pytest.mark.parametrize(("num_steps", "wishes"), [(12, {1.5, 2.0, 2.5}), (50, {1.5, 2.0, 2.5, 3.0, 3.5})])
def test_a_wish_that_so_many_steps_do_not_allow_is_left_out(num_steps: int, wishes: set[float]) -> None:
    reached = [method for method in select(METHODS, num_steps) if is_in_reach(method, num_steps)]
    assert {m.settings["speedup"] for m in reached if "speedup" in m.settings} == wishes
    assert {m.settings["quality"] for m in reached if "quality" in m.settings} == {"high", "balanced", "fast"}


def test_clips_between_two_settings_lie_on_a_line_in_the_log() -> None:
    two = setting(("ours", 0.98, [50.0, 40.0]), ("ours", 0.25, [30.0, 20.0]))
    share = math.log(2.0 * 0.98) / math.log(0.98 / 0.25)
    assert at(two, "ours", 2.0) == pytest.approx([50.0 - 20 * share, 40.0 - 20 * share])
    assert at(two, "ours", 3.95) == [30.0, 20.0]
    assert at(two, "ours", 5.0) is None
    assert at(two, "theirs", 2.0) is None


def test_settings_of_a_model_are_taken_together() -> None:
    found = {"a": setting((OURS, 0.5, [50.0, 29.0])), "b": setting((OURS, 0.5, [40.0, 42.0]))}
    (row,) = pooled_rows(found)
    assert (row["at"], row["settings"], row["lowest"], row["median"]) == ("2x", "2 of 2", "29.0", "41.0")
    assert row["under 30 dB"] == "25%"
    # where ours does not reach a speed-up, a setting is left out, and said to be
    (row,) = pooled_rows({**found, "c": setting((OURS, 1.0, [50.0, 50.0]))})
    assert row["settings"] == "2 of 3"
    text = page(found, 2)
    assert "### a: half 25.0, floor 40.0" in text
    assert f"| {OURS} 0.5 | 2.00x | 29.0 |" in text
    assert "| a | 25.0 | 40.0 | 0.050 | 90% |" in text


def test_one_limit_for_all_clips_is_judged_beside_a_wish() -> None:
    found = {
        "a": setting((FIXED, 0.5, [45.0, 44.0]), (OURS, 0.5, [35.0, 34.0]), ("teacache", 0.5, [40.0, 39.0])),
        "b": setting((FIXED, 1.0, [50.0, 50.0]), (OURS, 0.5, [35.0, 34.0]), ("teacache", 0.5, [40.0, 39.0])),
    }
    (row,) = bars(found, FIXED)
    assert row["settings"] == "1 of 2"
    assert row["median"] == "+5.0 dB: met"
    (row,) = bars(found)
    assert row["settings"] == "2 of 2"
    assert row["median"] == "-5.0 dB: missed"


def test_the_best_peer_is_taken_for_each_figure_alone() -> None:
    found = {
        "a": setting(
            (OURS, 0.5, [45.0, 35.0, 34.0]),
            ("teacache", 0.5, [50.0, 25.0, 20.0]),
            ("mag-cache", 0.5, [36.0, 33.0, 32.0]),
            ("every_nth", 0.5, [60.0, 60.0, 60.0]),
        )
    }
    (row,) = bars(found)
    assert row["under 30 dB"] == "0%, best peer 0%: met"
    assert row["tenth percentile"] == "+2.0 dB: met"
    assert row["median"] == "+2.0 dB: met"
    found["a"]["methods"][0]["values"] = [(0.5, psnr, 0.8) for psnr in (45.0, 34.9, 29.0)]
    (row,) = bars(found)
    assert row["under 30 dB"] == "33%, best peer 0%: missed"
    assert row["tenth percentile"] == "-2.0 dB: missed"
    assert row["median"] == "+1.9 dB: missed"
