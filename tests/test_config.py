from __future__ import annotations

import re
from typing import Any

import pytest

from mixcache.config import MixCacheConfig, default_policy, parse_settings, setting_names
from mixcache.decision import Granularity
from mixcache.policies import POLICIES, Bounded, EveryNth, Hindsight, MixCache, Replay
from mixcache.trace import Trace, TraceEntry

ALL = "always_compute, every_nth, mixcache, hindsight, planned, replay"


def one_step_trace() -> Trace:
    compute = TraceEntry(
        generation=0, step=0, num_steps=9, sigma=1.0, granularity=Granularity.COMPUTE, order=0, reason=""
    )
    return Trace([compute])


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ("mixcash", {}, f"unknown policy 'mixcash'; did you mean 'mixcache'? (there are: {ALL})"),
        ("zzz", {}, f"unknown policy 'zzz' (there are: {ALL})"),
        (
            "every_nth",
            {"perod": 2},
            "unknown setting of policy every_nth 'perod'; did you mean 'period'? (there are: granularity, period, "
            "order, corrector, num_warmup_steps, num_cooldown_steps, max_age, max_cached_run, span_first, span_after)",
        ),
        ("always_compute", {"period": 2}, "unknown setting of policy always_compute 'period'"),
        ("mixcache", {"delta_3": 0.1}, "unknown setting of policy mixcache 'delta_3'; did you mean 'delta_"),
        ("mixcache", {"num_warmup": 3}, "did you mean 'num_warmup_steps'?"),
        (EveryNth(), {"period": 3}, "unknown setting of policy every_nth 'period'"),
        ("every_nth", {"period": 0.5}, "period=0.5 must be a number of at least 1 (1 computes every step)"),
        ("every_nth", {"order": 5}, "order=5 is not 0 (reuse), 1 or 2 (Lagrange extrapolation in sigma)"),
        ("every_nth", {"max_age": 0}, "max_age=0 must be a whole number of at least 1"),
        ("every_nth", {"span_first": -1}, "span_first=-1 must be a whole number of at least 0"),
        ("every_nth", {"span_after": 1.5}, "span_after=1.5 must be a whole number of at least 0"),
        ("every_nth", {"span_after": True}, "span_after=True must be a whole number of at least 0"),
        ("mixcache", {"penalty": 0}, "penalty=0 must be a finite number of at least 1 (1 switches it off)"),
        ("replay", {}, "trace= is empty"),
    ],
)
def test_wrong_names_and_values(policy: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MixCacheConfig(policy=policy, settings=settings)


def test_settings_reach_policy_bounds_and_span() -> None:
    settings = {"granularity": "block", "period": 3, "max_age": 2, "num_warmup_steps": 1, "span_first": 0}
    config = MixCacheConfig(policy="every_nth", settings=settings)
    expected = Bounded(
        policy=EveryNth(granularity="block", period=3), max_age=2, num_warmup_steps=1, max_cached_run=10**9
    )
    assert config.build() == expected
    assert config.span == {"span_first": 0}
    assert config.policy_name == "every_nth"


def test_default_needs_no_calibration() -> None:
    assert MixCacheConfig().build() == Bounded(policy=Hindsight(), **Hindsight.default_bounds)
    assert default_policy({"error"}) == "hindsight"
    assert default_policy({"speedup"}) == default_policy({"quality"}) == "planned"


def test_the_paper_is_kept() -> None:
    assert MixCacheConfig(policy="mixcache").build() == Bounded(policy=MixCache(), **MixCache.default_bounds)
    assert (MixCache().penalty, MixCache().order) == (5.0, 0)


def test_a_policy_object_keeps_its_settings_and_takes_bounds() -> None:
    config = MixCacheConfig(policy=EveryNth(period=3), settings={"max_cached_run": 2})
    assert config.build() == Bounded(policy=EveryNth(period=3), max_cached_run=2, max_age=10**9)
    assert config.policy_name == "every_nth"


def test_a_bounded_policy_keeps_its_own_bounds() -> None:
    own = Bounded(policy=EveryNth(period=3), num_warmup_steps=1, num_cooldown_steps=0, max_age=20, max_cached_run=20)
    assert MixCacheConfig(policy=own).build() == own


@pytest.mark.parametrize("as_object", [False, True])
def test_replay_is_bounded_by_the_trace_alone(as_object: bool) -> None:
    trace = one_step_trace()
    config = (
        MixCacheConfig(policy=Replay(trace=trace))
        if as_object
        else MixCacheConfig(policy="replay", settings={"trace": trace})
    )
    bounded = config.build()
    assert (bounded.num_warmup_steps, bounded.num_cooldown_steps) == (1, 0)
    assert min(bounded.max_age, bounded.max_cached_run) > 10**6
    given = MixCacheConfig(policy="replay", settings={"trace": trace, "max_age": 2}).build()
    assert given.max_age == 2


def test_every_policy_is_listed_with_its_settings() -> None:
    assert {name: setting_names(policy) for name, policy in POLICIES.items()} == {
        "always_compute": (),
        "every_nth": ("granularity", "period", "order", "corrector"),
        "mixcache": (
            "delta_1",
            "delta_2",
            "first_interval",
            "max_interval",
            "penalty",
            "impacts",
            "order",
            "corrector",
        ),
        "hindsight": ("error", "choices", "order", "memory", "corrector"),
        "planned": (
            "speedup",
            "quality",
            "profile",
            "force_profile",
            "choices",
            "order",
            "guard",
            "corrector",
            "planner",
        ),
        "replay": ("trace",),
    }


def test_settings_are_numbers_where_they_are_numbers() -> None:
    pairs = ["period=2.5", "granularity=cfg", "max-age=3", 'impacts={"step": 1}', "profile=a=b"]
    assert parse_settings(pairs) == {
        "period": 2.5,
        "granularity": "cfg",
        "max_age": 3,
        "impacts": {"step": 1},
        "profile": "a=b",
    }
    assert parse_settings(None) == {}


@pytest.mark.parametrize("pair", ["period", "period=", "=3", ""])
def test_a_setting_is_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(ValueError, match=f"setting {pair!r} is not NAME=VALUE"):
        parse_settings([pair])
