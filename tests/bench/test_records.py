"""Sums over records, lines and fronts, by arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.bench.methods import PLAIN, Method
from mixcache.bench.records import Record, best_at, on_line, pareto_front, summarise

A, B = Method(family="a"), Method(family="b")


def test_summarise_takes_medians_of_times_and_means_of_qualities(make_record: Callable[..., Record]) -> None:
    (row,) = summarise(
        [
            make_record(A, 3.0, 30.0, ideal_speedup=4.0, ssim=0.7, cache_peak_bytes=1024),
            make_record(A, 2.0, 34.0, ideal_speedup=2.0, ssim=0.8, lpips=0.25),
            make_record(A, 1.5, None, ideal_speedup=1.5, ssim=0.9, cache_peak_bytes=None),
        ]
    )
    assert row["seconds"] == 6  # of 4, 6, 8
    assert row["speedup"] == row["ideal"] == 2.0
    assert row["of_ideal"] == 1.0  # of 0.75, 1, 1
    assert row["psnr_db"] == 32.0  # the identical clip has none
    assert row["psnr_spread"] == 2.0
    assert row["ssim"] == pytest.approx(0.8)
    assert row["lpips"] == 0.25
    assert row["cache_kib"] == 2.0
    assert row["steps"] == {"compute": 25, "step": 25}


def test_what_was_never_measured_is_none(make_record: Callable[..., Record]) -> None:
    nothing = {"ssim": None, "cache_peak_bytes": None, "granularity_counts": {}}
    (row,) = summarise([make_record(A, 1.0, None, **nothing)])
    for name in ("psnr_db", "psnr_spread", "ssim", "lpips", "cache_kib"):
        assert row[name] is None
    assert row["steps"] == {}
    assert row["speedup_spread"] == 0.0


def test_rows_come_in_order_of_appearance(make_record: Callable[..., Record]) -> None:
    records = [make_record(method) for method in (PLAIN, B, A, B)]
    assert [row["method"] for row in summarise(records)] == ["plain", "b", "a"]


def test_a_record_goes_through_plain_data(make_record: Callable[..., Record]) -> None:
    record = make_record(A, peak_memory_bytes=3, repeat=1)
    data = asdict(record)
    assert data["granularity_counts"] == {"compute": 25, "step": 25}
    assert Record(**data) == record


def test_a_line_is_read_between_its_points() -> None:
    points = [(2.5, 30.0), (1.5, 40.0)]
    assert on_line(points, 2.0) == 35.0
    assert on_line(points, 1.5) == 40.0
    assert on_line(points, 2.5) == 30.0
    assert on_line(points, 1.4) is None
    assert on_line([(2.0, 40.0), (2.0, 30.0)], 2.0) == 30.0  # no division by zero
    assert on_line([(2.0, 40.0)], 2.0) is None


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = [(1.5, 40.0), (2.0, 41.0), (2.0, 39.0), (2.5, 30.0), (3.0, 30.0)]
    assert pareto_front(points) == [(2.0, 41.0), (3.0, 30.0)]
    assert pareto_front([]) == []


def test_the_best_at_a_speedup_is_read_on_the_front() -> None:
    points = [(1.5, 36.0), (2.0, 40.0), (3.0, 30.0)]
    assert best_at(points, 2.5) == 35.0
    assert best_at(points, 1.2) == 40.0  # whoever asks for less takes the slowest of the front, which is at 2x
    assert best_at(points, 3.0) == 30.0
    assert best_at(points, 3.1) is None
    assert best_at([], 2.0) is None
    assert best_at([(2.0, 40.0)], 2.0) == 40.0


POINTS = st.lists(st.tuples(st.floats(0.5, 5), st.floats(10, 60)), max_size=12)


@given(POINTS)
def test_a_front_rises_in_speed_falls_in_quality_and_is_beaten_by_none(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert set(front) <= set(points)
    for (slow, good), (fast, bad) in itertools.pairwise(front):
        assert slow < fast
        assert good > bad
    for speedup, quality in points:
        assert any(s >= speedup and q >= quality for s, q in front)
        best = best_at(points, speedup)
        assert best is not None
        assert best >= quality - 1e-9
