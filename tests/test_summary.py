"""The summary as values, by name and as a table."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from mixcache import Summary

SUMMARY = Summary(
    policy="every_nth",
    num_generations=2,
    num_steps=24,
    granularity_counts={"compute": 18, "block": 0, "cfg": 0, "step": 6},
    computed_share=0.75,
    ideal_speedup=4 / 3,
    num_non_finite=0,
    num_calls_in_full=0,
    wished_speedup=None,
    speedup=None,
    estimate=None,
    num_corrected=0,
    why_not=None,
    held_bytes=0,
    peak_bytes=512,
)


def test_a_table_without_what_did_not_happen() -> None:
    assert str(SUMMARY).splitlines() == [
        "policy       every_nth",
        "generations  2",
        "steps        24 (18 compute, 6 step)",
        "work         75% of the blocks ran, 1.33x at best",
        "memory       512 B at most, 0 B now",
    ]


def test_a_table_with_all_that_can_happen() -> None:
    summary = replace(
        SUMMARY,
        speedup=2.034,
        wished_speedup=2.0,
        estimate="40 dB or more in nine clips of ten",
        num_corrected=6,
        num_calls_in_full=3,
        num_non_finite=1,
        why_not="nothing was cached: warm-up (4 times)",
        held_bytes=1536,
        peak_bytes=3 * 2**31,
    )
    assert str(summary).splitlines()[3:] == [
        "speed-up     2.03x of the denoising loop (2x wished)",
        "quality      40 dB or more in nine clips of ten",
        "corrected    6 cached steps",
        "work         75% of the blocks ran, 1.33x at best",
        "memory       6.0 GiB at most, 1.5 KiB now",
        "in full      3 calls that said too little",
        "not finite   1 calls, not cached",
        "why not      nothing was cached: warm-up (4 times)",
    ]


def test_a_speedup_that_nobody_wished_for_and_a_wish_that_nothing_is_known_of() -> None:
    assert "speed-up     1.50x of the denoising loop" in str(replace(SUMMARY, speedup=1.5)).splitlines()
    assert "speed-up" not in str(replace(SUMMARY, wished_speedup=2.5))


def test_before_any_step() -> None:
    counts = dict.fromkeys(SUMMARY.granularity_counts, 0)
    summary = replace(SUMMARY, num_steps=0, granularity_counts=counts, computed_share=0.0, ideal_speedup=None)
    assert str(summary).splitlines()[2:4] == ["steps        0", "work         0% of the blocks ran"]


def test_values_by_attribute_and_by_name() -> None:
    assert SUMMARY.granularity_counts["step"] == SUMMARY["granularity_counts"]["step"] == 6
    with pytest.raises(KeyError, match="num_step"):
        SUMMARY["num_step"]
    with pytest.raises(FrozenInstanceError):
        SUMMARY.num_steps = 3  # type: ignore[misc]


def test_a_dict_of_plain_values() -> None:
    values = json.loads(json.dumps(SUMMARY.to_dict()))
    assert values["peak_bytes"] == 512
    assert Summary(**values) == SUMMARY
