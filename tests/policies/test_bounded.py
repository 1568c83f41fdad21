from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.decision import Decision, Granularity, Step
from mixcache.policies import AlwaysCompute, Bounded, EveryNth, MixCache, Policy
from mixcache.policies.base import Needs

Pattern = Callable[..., str]
LONG = EveryNth(period=1000)  # after its first step it would cache for ever


@dataclass(frozen=True, kw_only=True)
class AlwaysStep(Policy):
    """Asks for a step reuse without looking at the ages."""

    @property
    def needs(self) -> Needs:
        return Needs(granularities=(Granularity.STEP,))

    def decide(self, step: Step, state: Any) -> Decision:
        return Decision(granularity=Granularity.STEP)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"num_warmup_steps": 1, "num_cooldown_steps": 0}, "..ssssssss"),
        ({"num_warmup_steps": 4, "num_cooldown_steps": 0}, ".....sssss"),
        ({"num_warmup_steps": 1, "num_cooldown_steps": 3}, "..sssss..."),
        ({"num_warmup_steps": 9, "num_cooldown_steps": 0}, ".........."),
        ({"num_warmup_steps": 4, "num_cooldown_steps": 9}, ".........."),
    ],
)
def test_warm_up_and_cool_down(pattern: Pattern, bounds: dict[str, int], expected: str) -> None:
    assert pattern(Bounded(policy=LONG, max_age=99, max_cached_run=99, **bounds), 10) == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"max_age": 2, "max_cached_run": 99}, "..ss.ss.ss"),
        ({"max_age": 99, "max_cached_run": 3}, "..sss.sss."),
        ({"max_age": 2, "max_cached_run": 3}, "..ss.ss.ss"),
        ({"max_age": 3, "max_cached_run": 1}, "..s.s.s.s."),
    ],
)
def test_age_and_run(pattern: Pattern, bounds: dict[str, int], expected: str) -> None:
    assert pattern(Bounded(policy=LONG, num_warmup_steps=1, num_cooldown_steps=0, **bounds), 10) == expected


def test_bounds_hold_for_a_policy_that_does_not_look_at_ages(pattern: Pattern) -> None:
    bounds = {"num_warmup_steps": 1, "num_cooldown_steps": 1, "max_age": 2, "max_cached_run": 9}
    assert pattern(Bounded(policy=AlwaysStep(), **bounds), 9) == ".ss.ss.s."
    assert pattern(Bounded(policy=AlwaysStep(), **bounds), 5, absent=[Granularity.STEP]) == "....."


def test_the_run_is_of_steps_that_were_cached() -> None:
    """The engine computes what has no history, and that is no cached step."""
    bounded = Bounded(policy=AlwaysStep(), num_warmup_steps=1, num_cooldown_steps=0, max_cached_run=2)
    state = bounded.init()
    told = {"num_steps": 9, "sigma": 0.5, "ages": {Granularity.STEP: 1}, "history_lengths": {Granularity.STEP: 1}}
    chosen = [
        bounded.decide(Step(index=1 + place, num_cached=num_cached, **told), state)  # type: ignore[arg-type]
        for place, num_cached in enumerate((0, 0, 0, 1, 2))
    ]
    assert [decision.granularity for decision in chosen] == [Granularity.STEP] * 4 + [Granularity.COMPUTE]
    assert chosen[-1].reason == "2 cached steps in a row"


def test_its_state_is_that_of_its_policy() -> None:
    assert Bounded(policy=MixCache()).init() == MixCache().init()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("mixcache", "policy='mixcache' is no policy object, such as EveryNth(period=3)"),
        (EveryNth, "is no policy object"),
        (Bounded(), "policy= is Bounded already; change its own bounds: dataclasses.replace(bounded, max_age=2)"),
    ],
)
def test_what_is_no_policy_is_not_bounded(policy: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        Bounded(policy=policy)


def test_reasons(driven: Callable[..., list[Decision]]) -> None:
    bounded = Bounded(policy=EveryNth(period=9), num_warmup_steps=2, num_cooldown_steps=1, max_cached_run=2)
    reasons = [decision.reason for decision in driven(bounded, 8)]
    assert reasons == [
        "warm-up",
        "warm-up",
        "cadence",
        "cadence",
        "cadence",
        "2 cached steps in a row",
        "cadence",
        "cool-down",
    ]


def test_leaves_nothing() -> None:
    bounded = Bounded(policy=LONG, num_warmup_steps=4, num_cooldown_steps=1)
    assert [bounded.leaves_nothing(n) for n in (1, 4, 5, 6, 50)] == [True, True, True, False, False]
    # a policy that never caches has nothing to lose
    assert not Bounded(policy=AlwaysCompute()).leaves_nothing(1)


def test_passes_on_what_the_policy_is() -> None:
    policy = MixCache(predictor="parabola", granularities="cfg")
    assert Bounded(policy=policy).needs == policy.needs


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"num_warmup_steps": 0}, "num_warmup_steps=0 must be a whole number of at least 1"),
        ({"num_cooldown_steps": -1}, "num_cooldown_steps=-1 must be a whole number of at least 0"),
        ({"max_age": 0}, "max_age=0 must be a whole number of at least 1"),
        ({"max_cached_run": 1.5}, "max_cached_run=1.5 must be a whole number of at least 1"),
    ],
)
def test_wrong_bounds(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bounded(**bounds)


@given(
    policy=st.sampled_from(
        [
            AlwaysStep(),
            EveryNth(period=7),
            EveryNth(granularities="block", period=1000),
            MixCache(delta_1=1.0, delta_2=2.0, max_interval=9),
        ]
    ),
    deviations=st.lists(st.floats(0, 3), min_size=1, max_size=40),
    num_steps=st.integers(1, 40),
    num_warmup_steps=st.integers(1, 8),
    num_cooldown_steps=st.integers(0, 8),
    max_age=st.integers(1, 6),
    max_cached_run=st.integers(1, 6),
)
def test_bounds_hold(
    pattern: Pattern,
    policy: Policy,
    deviations: list[float],
    num_steps: int,
    num_warmup_steps: int,
    num_cooldown_steps: int,
    max_age: int,
    max_cached_run: int,
) -> None:
    bounded = Bounded(
        policy=policy,
        num_warmup_steps=num_warmup_steps,
        num_cooldown_steps=num_cooldown_steps,
        max_age=max_age,
        max_cached_run=max_cached_run,
    )
    distances = [dict.fromkeys(policy.needs.granularities, 1.0)]
    text = pattern(bounded, num_steps, deviations, distances)
    assert set(text[:num_warmup_steps]) == {"."}
    assert set(text[max(0, num_steps - num_cooldown_steps) :]) <= {"."}
    # all quantities are refreshed by a computed step only, so a run is as long as its last age
    assert max(len(run) for run in text.split(".")) <= min(max_age, max_cached_run)
    if bounded.leaves_nothing(num_steps):
        assert set(text) == {"."}
