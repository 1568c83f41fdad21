from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from mixcache.config import MixCacheConfig, parse_settings, setting_names
from mixcache.decision import Granularity
from mixcache.policies import POLICIES, Bounded, EveryNth, Hold, MixCache, Policy, Replay
from mixcache.predictors import REUSE
from mixcache.trace import Trace, TraceEntry

ALL = "always_compute, every_nth, mixcache, hold, hindsight, replay"


@dataclass(frozen=True, kw_only=True)
class OwnPolicy(Policy):
    """Somebody's, without a name."""

    order: int = 0


def one_step_trace() -> Trace:
    compute = TraceEntry(
        generation=0, step=0, num_steps=9, sigma=1.0, granularity=Granularity.COMPUTE, predictor=REUSE, reason=""
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
            "unknown setting of policy every_nth 'perod'; did you mean 'period'? (there are: granularities, period, "
            "predictor, corrector, num_warmup_steps, num_cooldown_steps, max_age, max_cached_run, span_first, "
            "span_after)",
        ),
        ("always_compute", {"period": 2}, "unknown setting of policy always_compute 'period'"),
        ("mixcache", {"delta_3": 0.1}, "unknown setting of policy mixcache 'delta_3'; did you mean 'delta_"),
        ("mixcache", {"num_warmup": 3}, "did you mean 'num_warmup_steps'?"),
        (
            EveryNth(),
            {"period": 3},
            "period= is a setting of the policy: give it to the object, EveryNth(period=3), or name the policy: "
            "enable(pipe, 'every_nth', period=3)",
        ),
        (
            Bounded(policy=EveryNth()),
            {"predictor": "line"},
            "give it to the object, EveryNth(predictor='line'), or name the policy",
        ),
        (
            OwnPolicy(),
            {"order": 1},
            "order= is a setting of the policy: give it to the object, OwnPolicy(order=1)",
        ),
        (
            Hold(speedup=2.0),
            {"profile": "p" * 60},
            "give it to the object, Hold(profile=...), or name the policy",
        ),
        (EveryNth(), {"perod": 3}, "unknown setting of policy every_nth 'perod'; did you mean 'period'?"),
        ("every_nth", {"period": 0.5}, "period=0.5 must be a number of at least 1 (1 computes every step)"),
        (
            "every_nth",
            {"predictor": "lines"},
            "unknown predictor 'lines'; did you mean 'line'? (there are: reuse, line, parabola)",
        ),
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


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (MixCache, "policy=MixCache is a class and no policy yet; call it: MixCache(...)"),
        (dict, "policy=<class 'dict'> is no policy; give a name, enable(pipe, 'every_nth', period=3), or an object"),
        ({"policy": "hindsight"}, "policy={'policy': 'hindsight'} is a dict, and no policy; give a name, enable("),
        (3, "policy=3 is no policy; give a name, enable(pipe, 'every_nth', period=3), or an object, enable(pipe, Ev"),
        (None, "policy=None is no policy"),
        (MixCacheConfig(), "is no policy; give a name"),
    ],
)
def test_what_is_no_policy(policy: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        MixCacheConfig(policy=policy)


def test_settings_are_a_mapping() -> None:
    with pytest.raises(TypeError, match=re.escape("settings=['period=3'] must map names to values")):
        MixCacheConfig(policy="every_nth", settings=["period=3"])  # type: ignore[arg-type]


def test_settings_reach_policy_bounds_and_span() -> None:
    settings = {"granularities": "block", "period": 3, "max_age": 2, "num_warmup_steps": 1, "span_first": 0}
    config = MixCacheConfig(policy="every_nth", settings=settings)
    expected = Bounded(
        policy=EveryNth(granularities="block", period=3), max_age=2, num_warmup_steps=1, max_cached_run=10**9
    )
    assert config.build() == expected
    assert config.span == {"span_first": 0}
    assert config.policy_name == "every_nth"


def test_default_needs_no_calibration() -> None:
    assert MixCacheConfig().build() == Bounded(policy=Hold(), **Hold.default_bounds)


def test_the_paper_is_kept() -> None:
    assert MixCacheConfig(policy="mixcache").build() == Bounded(policy=MixCache(), **MixCache.default_bounds)
    assert (MixCache().penalty, MixCache().predictor) == (5.0, "reuse")


def test_a_policy_object_keeps_its_settings_and_takes_bounds() -> None:
    config = MixCacheConfig(policy=EveryNth(period=3), settings={"max_cached_run": 2})
    assert config.build() == Bounded(policy=EveryNth(period=3), max_cached_run=2, max_age=10**9)
    assert config.policy_name == "every_nth"


def test_a_bounded_policy_keeps_its_own_bounds() -> None:
    own = Bounded(policy=EveryNth(period=3), num_warmup_steps=1, num_cooldown_steps=0, max_age=20, max_cached_run=20)
    assert MixCacheConfig(policy=own).build() == own


def test_a_bounded_policy_takes_bounds_and_has_the_name_of_what_it_bounds() -> None:
    config = MixCacheConfig(policy=Bounded(policy=EveryNth(period=3)), settings={"max_age": 2, "span_first": 0})
    assert config.build() == Bounded(policy=EveryNth(period=3), max_age=2)
    assert (config.policy_name, config.span) == ("every_nth", {"span_first": 0})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("always_compute", {}),
        ("every_nth", {"granularities": "cfg", "period": 3}),
        ("mixcache", {"impacts": {"step": 1.0}, "predictor": "line"}),
        ("mixcache", {}),
        ("hindsight", {"granularities": ["step", "cfg"]}),
        ("hold", {"speedup": 2.0, "profile": "p.json"}),
        ("hold", {"quality": "fast", "corrector": False}),
        ("replay", {"trace": one_step_trace()}),
    ],
)
def test_an_object_is_its_name(name: str, settings: dict[str, Any]) -> None:
    policy = POLICIES[name](**settings)
    by_name = MixCacheConfig(policy=name, settings=settings)
    assert MixCacheConfig(policy=policy).build() == by_name.build()
    assert MixCacheConfig(policy=policy).policy_name == by_name.policy_name == name


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
        "every_nth": ("granularities", "period", "predictor", "corrector"),
        "mixcache": (
            "delta_1",
            "delta_2",
            "first_interval",
            "max_interval",
            "penalty",
            "granularities",
            "impacts",
            "predictor",
            "corrector",
        ),
        "hold": ("speedup", "quality", "error", "profile", "corrector"),
        "hindsight": ("error", "granularities", "predictors", "memory", "corrector"),
        "replay": ("trace",),
    }


def test_settings_are_numbers_where_they_are_numbers() -> None:
    pairs = ["period=2.5", "granularities=cfg", "max-age=3", 'impacts={"step": 1}', "profile=a=b"]
    assert parse_settings(pairs) == {
        "period": 2.5,
        "granularities": "cfg",
        "max_age": 3,
        "impacts": {"step": 1},
        "profile": "a=b",
    }
    assert parse_settings(None) == {}


@pytest.mark.parametrize("pair", ["period", "period=", "=3", ""])
def test_a_setting_is_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(ValueError, match=f"setting {pair!r} is not NAME=VALUE"):
        parse_settings([pair])
