from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.decision import Granularity, Step
from mixcache.policies import AlwaysCompute, EveryNth
from mixcache.policies.base import Needs
from mixcache.predictors import LINE, PARABOLA, REUSE

Pattern = Callable[..., str]


def test_always_compute_computes_and_keeps_nothing(pattern: Pattern) -> None:
    assert pattern(AlwaysCompute(), 5) == "....."
    assert AlwaysCompute().needs == Needs()


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (1, ".........."),
        (2, ".s.s.s.s.s"),
        (2.5, ".ss.s.ss.s"),  # k / 2.5 passes a whole number at 3, 5, 8, 10
        (3, ".ss.ss.ss."),
        (4, ".sss.sss.s"),
    ],
)
def test_cadence(pattern: Pattern, period: float, expected: str) -> None:
    assert pattern(EveryNth(period=period), 10) == expected


@pytest.mark.parametrize(("granularity", "expected"), [("step", ".ss.ss"), ("cfg", ".cc.cc"), ("block", ".bb.bb")])
def test_only_the_named_granularity_is_chosen(pattern: Pattern, granularity: str, expected: str) -> None:
    policy = EveryNth(granularities=granularity, period=3)
    assert pattern(policy, 6) == expected
    assert policy.needs.granularities == (Granularity(granularity),)


def test_without_history_computes(pattern: Pattern) -> None:
    assert pattern(EveryNth(granularities="cfg", period=3), 6, absent=[Granularity.CFG]) == "......"


def test_the_predictor_is_what_the_history_allows() -> None:
    policy = EveryNth(period=10, predictor="parabola")
    predictors = []
    for length in (1, 2, 3):
        state = policy.init()
        policy.decide(Step(index=0, num_steps=9, sigma=1.0), state)
        ages, lengths = {Granularity.STEP: 1}, {Granularity.STEP: length}
        decision = policy.decide(Step(index=1, num_steps=9, sigma=0.9, ages=ages, history_lengths=lengths), state)
        predictors.append(decision.predictor)
    assert predictors == [REUSE, LINE, PARABOLA]
    assert policy.needs.num_values == 3


def test_two_trajectories_do_not_share_a_state(pattern: Pattern) -> None:
    policy = EveryNth(period=3)
    assert pattern(policy, 5) == pattern(policy, 5) == ".ss.s"


@pytest.mark.parametrize("period", [0, 0.99, -1, float("nan"), float("inf"), "2", None])
def test_wrong_period(period: object) -> None:
    with pytest.raises(ValueError, match=r"period=.* must be a number of at least 1"):
        EveryNth(period=period)  # type: ignore[arg-type]


@pytest.mark.parametrize("predictor", [-1, 1, True, "cubic", "2.0 line", "nan line", " line", None])
def test_wrong_predictor(predictor: object) -> None:
    with pytest.raises(
        ValueError, match=r"unknown predictor '.*'(; did you mean 'line'\?)? \(there are: reuse, line, parabola\)"
    ):
        EveryNth(predictor=predictor)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularities", ["compute", "", ["compute"]])
def test_unknown_granularity(granularities: object) -> None:
    with pytest.raises(ValueError, match=r"unknown granularity '.*' \(there are: step, cfg, block\)"):
        EveryNth(granularities=granularities)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularities", [None, 3, []])
def test_wrong_granularities(granularities: object) -> None:
    with pytest.raises(ValueError, match=r"granularities=.* must be one or a list of step, cfg and block"):
        EveryNth(granularities=granularities)  # type: ignore[arg-type]


def test_several_granularities_take_turns(pattern: Pattern) -> None:
    assert pattern(EveryNth(granularities=["step", "cfg"], period=2), 8) == ".s.c.s.c"


@given(period=st.floats(1, 9), num_steps=st.integers(1, 60))
def test_computes_one_step_in_period(pattern: Pattern, period: float, num_steps: int) -> None:
    computed = [i for i, letter in enumerate(pattern(EveryNth(period=period), num_steps)) if letter == "."]
    assert computed[0] == 0
    # k = 0 and every k at which floor(k / period) moves: 1 + floor((n - 1) / period) of n steps
    assert len(computed) == 1 + int((num_steps - 1) / period)
    gaps = [b - a for a, b in pairwise(computed)]
    assert all(int(period) <= gap <= int(period) + 1 for gap in gaps)
