"""The sweep: its grid and its margin, by arithmetic."""

from __future__ import annotations

import pytest

from mixcache.bench.run import margin
from mixcache.bench.sweep import settings_of


def test_margin_is_taken_on_the_line_between_two_plain_runs() -> None:
    fewer = [(2.0, 30.0), (1.5, 34.0), (3.0, 20.0)]
    assert margin(1.75, 33.0, fewer) == pytest.approx(1.0)
    assert margin(2.5, 24.0, fewer) == pytest.approx(-1.0)
    assert margin(3.5, 24.0, fewer) is None


def test_settings_are_all_combinations_that_the_policy_accepts() -> None:
    grid = {"delta_1": (0.1, 0.3), "delta_2": (0.2,), "max_interval": (1, 2)}
    assert settings_of(grid) == [
        {"delta_1": 0.1, "delta_2": 0.2, "max_interval": 1},
        {"delta_1": 0.1, "delta_2": 0.2, "max_interval": 2},
    ]
