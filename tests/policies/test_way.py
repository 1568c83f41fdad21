from __future__ import annotations

import math

import pytest

from mixcache.decision import Granularity
from mixcache.policies.way import PRIOR, Learnt, Way, log_snr


def level_at(place: float) -> float:
    return 1 / (1 + math.exp(place))


def test_log_of_signal_over_noise() -> None:
    assert log_snr(0.5) == 0.0
    assert log_snr(level_at(2.0)) == pytest.approx(2.0)
    assert log_snr(1.0) == pytest.approx(-log_snr(0.0)) == pytest.approx(math.log(1e-4 / (1 - 1e-4)))


def test_rates_are_on_lines_between_places() -> None:
    way = Way(places=(-1.0, 1.0), log_rates=(2.0, 4.0))
    assert [way.log_rate(level_at(place)) for place in (-5, -1, 0, 0.5, 1, 9)] == pytest.approx([2, 2, 3, 3.5, 4, 4])


def test_the_prior_falls_from_noise_to_the_middle() -> None:
    rates = [PRIOR.log_rate(level_at(place)) for place in (-4, -3, -2, -1, 0)]
    assert rates == sorted(rates, reverse=True)


def test_what_was_seen_moves_the_prior() -> None:
    learnt = Learnt()
    assert learnt.way is PRIOR
    learnt.see(level_at(-2.0), 2 * math.exp(PRIOR.log_rate(level_at(-2.0))))
    learnt.see(level_at(0.0), 4 * math.exp(PRIOR.log_rate(level_at(0.0))))
    moves = [learnt.way.log_rate(level_at(p)) - PRIOR.log_rate(level_at(p)) for p in (-5, -2, -1, 0, 1.5)]
    assert [math.exp(move) for move in moves] == pytest.approx([2, 2, math.sqrt(8), 4, 4])


def test_what_is_seen_again_counts_half() -> None:
    learnt = Learnt()
    for rate in (4.0, 1.0):
        learnt.see(0.5, rate)
    assert math.exp(learnt.way.log_rate(0.5)) == pytest.approx(2.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_rate_teaches_nothing(rate: float) -> None:
    learnt = Learnt()
    learnt.see(0.5, rate)
    assert learnt.way is PRIOR


def test_it_does_not_grow() -> None:
    learnt = Learnt()
    for step in range(10_000):
        learnt.see(step / 10_000, 1.0 + step)
    assert len(learnt.log_rates) <= len(PRIOR.places)


def test_times_are_a_share() -> None:
    learnt = Learnt()
    learnt.see_times({Granularity.COMPUTE: 2.0})
    assert learnt.cached_share is None
    learnt.see_times({Granularity.COMPUTE: 2.0, Granularity.STEP: 0.1})
    assert learnt.cached_share == 0.05
