"""A policy object, alone or bounded, becomes what the same policy by name is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from traces import letters

import mixcache
from mixcache import zoo
from mixcache.planning.profiles import Profile, ProfileError, profile_for
from mixcache.policies import Bounded, Policy

CAPTION = "a large red circle moving left on a plain white background"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a speed-up": ("planned", {"speedup": 2.0}),
    "a quality": ("planned", {"quality": 40, "predictors": "reuse", "granularities": ["step"]}),
    "impacts": ("mixcache", {"delta_1": 50.0, "delta_2": 100.0}),
    "even impacts": ("mixcache", {"delta_1": 50.0, "delta_2": 100.0, "impacts": {"step": 1.0, "cfg": 1.0}}),
}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipeline = zoo.load("shapes-wan")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def bounded(policy: Policy) -> Bounded:
    """With the bounds that the policy has by name."""
    return Bounded(policy=policy, **policy.default_bounds)


def generate(pipeline: Any, *given: Any, **settings: Any) -> tuple[torch.Tensor, str, mixcache.Handle]:
    arguments = zoo.call_defaults() | {"num_inference_steps": 12, "output_type": "latent"}
    with mixcache.enable(pipeline, *given, **settings) as handle:
        latents = pipeline(CAPTION, generator=torch.Generator().manual_seed(0), **arguments).frames
    return latents, letters(handle.trace), handle


@pytest.mark.parametrize("case", CASES)
def test_an_object_does_what_its_name_does(pipeline: Any, case: str) -> None:
    name, settings = CASES[case]
    expected, schedule, by_name = generate(pipeline, name, **settings)
    assert set(schedule) > {"."}
    policy = mixcache.POLICIES[name](**settings)
    for given in (policy, bounded(policy), mixcache.MixCacheConfig(policy=policy)):
        latents, chosen, handle = generate(pipeline, given)
        assert chosen == schedule
        assert torch.equal(latents, expected)
        assert handle.settings == by_name.settings
        assert handle.plan == by_name.plan
        assert handle.summary() == by_name.summary()


def test_impacts_are_the_profiles_unless_given(pipeline: Any, make_pipeline: Any) -> None:
    profile = profile_for(pipeline.transformer)
    assert profile is not None
    for given in (mixcache.MixCache(), bounded(mixcache.MixCache()), "mixcache"):
        with mixcache.enable(pipeline, given) as handle:
            assert handle.settings["impacts"] == profile.impacts
        with mixcache.enable(make_pipeline(), given) as handle:  # a model without a profile
            assert handle.settings["impacts"] == {}
    with mixcache.enable(pipeline, mixcache.MixCache(granularities="step", impacts={"step": 2.0})) as handle:
        assert handle.settings["impacts"] == {"step": 2.0}


def test_a_planner_that_is_given_stays(pipeline: Any) -> None:
    with mixcache.enable(pipeline, speedup=2.0) as handle:
        planner = handle.planner
    with mixcache.enable(pipeline, mixcache.Planned(speedup=3.0, planner=planner)) as handle:
        assert handle.planner is planner


def test_bounds_and_span_beside_an_object_are_kept(pipeline: Any) -> None:
    with mixcache.enable(pipeline, mixcache.Planned(speedup=2.0), num_warmup_steps=3, span_first=2) as handle:
        assert {name: handle.settings[name] for name in ("num_warmup_steps", "max_age", "span_first")} == {
            "num_warmup_steps": 3,
            "max_age": 10**9,
            "span_first": 2,
        }


def test_a_profile_in_an_object_is_checked(pipeline: Any, make_pipeline: Any, tmp_path: Any) -> None:
    profile = profile_for(pipeline.transformer)
    assert profile is not None
    small = replace(profile, others=[])
    small.save(tmp_path / "small.json")
    for given in (small, tmp_path / "small.json", str(tmp_path / "small.json")):
        with mixcache.enable(pipeline, mixcache.Planned(speedup=2.0, profile=given)) as handle:
            assert isinstance(handle.planner.profile, Profile)
            assert handle.planner.profile.digest == small.digest
    with pytest.raises(ProfileError, match="the profile does not fit this model"):
        mixcache.enable(make_pipeline(), mixcache.Planned(speedup=2.0, profile=small))
    with pytest.raises(ProfileError, match="no profile for this WanTransformer3DModel"):
        mixcache.enable(make_pipeline(), mixcache.Planned(speedup=2.0))
