"""The page of the hard settings, from made-up clips."""

from __future__ import annotations

import math
from typing import Any

import pytest

from studies.hard_page import at, page, pooled_rows


def setting(*methods: tuple[str, float, list[float]]) -> dict[str, Any]:
    return {
        "model": "small",
        "half": 25.0,
        "bfloat16": 40.0,
        "methods": [
            {"family": family, "name": f"{family} {share}", "values": [(share, psnr) for psnr in decibels]}
            for family, share, decibels in methods
        ],
    }


def test_clips_between_two_settings_lie_on_a_line_in_the_log() -> None:
    two = setting(("ours", 0.98, [50.0, 40.0]), ("ours", 0.25, [30.0, 20.0]))
    share = math.log(2.0 * 0.98) / math.log(0.98 / 0.25)
    assert at(two, "ours", 2.0) == pytest.approx([50.0 - 20 * share, 40.0 - 20 * share])
    assert at(two, "ours", 3.95) == [30.0, 20.0]
    assert at(two, "ours", 5.0) is None
    assert at(two, "theirs", 2.0) is None


def test_settings_of_a_model_are_taken_together() -> None:
    found = {"a": setting(("ours", 0.5, [50.0, 29.0])), "b": setting(("ours", 0.5, [40.0, 42.0]))}
    (row,) = pooled_rows(found)
    assert (row["at"], row["lowest"], row["median"], row["under 30 dB"]) == ("2x", "29.0", "41.0", "25%")
    assert list(pooled_rows({**found, "c": setting(("ours", 1.0, [50.0, 50.0]))})) == []
    text = page(found, 2)
    assert "### a: half 25.0, floor 40.0" in text
    assert "| ours 0.5 | 2.00x | 29.0 |" in text
