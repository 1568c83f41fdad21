"""A policy object, alone or bounded, becomes what the same policy by name is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from traces import letters

import mixcache
from mixcache import zoo
from mixcache.policies import Bounded, Hold, Policy
from mixcache.policies.way import Learnt
from mixcache.profiles import Profile, ProfileError, profile_for

CAPTION = "a large red circle moving left on a plain white background"
SMALL = {"height": 48, "width": 48, "num_frames": 5, "num_inference_steps": 12, "output_type": "latent"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "an error": ("hold", {"error": 0.6}),
    "a quality": ("hold", {"quality": "fast"}),
    "a speed-up": ("hold", {"speedup": 1.5}),
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
    arguments = zoo.call_defaults() | SMALL
    with mixcache.enable(pipeline, *given, **settings) as handle:
        latents = pipeline(CAPTION, generator=torch.Generator().manual_seed(0), **arguments).frames
    return latents, letters(handle.trace), handle


@pytest.mark.usefixtures("steady_times")
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
        assert replace(handle.summary(), speedup=None) == replace(by_name.summary(), speedup=None)


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


def test_what_was_learnt_before_goes_on(pipeline: Any) -> None:
    """What a policy was given stays, also where there is a profile; else the profile's is the beginning."""
    profile = profile_for(pipeline.transformer)
    assert profile is not None
    with mixcache.enable(pipeline, speedup=2.0) as handle:
        assert handle.policy.policy.learnt == profile.learnt
    learnt = Learnt(log_rates={3: 1.0}, cached_share=0.5)
    with mixcache.enable(pipeline, Hold(speedup=1.2, learnt=learnt)) as handle:
        assert handle.policy.policy.learnt is learnt


def test_a_policy_object_that_is_used_twice_learns_nothing_of_the_other_model(
    pipeline: Any, make_pipeline: Any
) -> None:
    policy = Hold(error=0.5)
    handles = [mixcache.enable(each, policy) for each in (pipeline, make_pipeline(), make_pipeline(seed=1))]
    learnt = [handle.policy.policy.learnt for handle in handles]
    for handle in handles:
        handle.disable()
    assert len({id(each) for each in (*learnt, policy.learnt)}) == 4
    assert policy.learnt == learnt[1] == learnt[2] == Learnt()


def test_bounds_and_span_beside_an_object_are_kept(pipeline: Any) -> None:
    with mixcache.enable(pipeline, Hold(speedup=2.0), num_warmup_steps=3, span_first=2) as handle:
        assert {name: handle.settings[name] for name in ("num_warmup_steps", "max_age", "span_first")} == {
            "num_warmup_steps": 3,
            "max_age": 10**9,
            "span_first": 2,
        }


def test_a_profile_in_an_object_is_checked(pipeline: Any, make_pipeline: Any, tmp_path: Any) -> None:
    profile = profile_for(pipeline.transformer)
    assert profile is not None
    small = replace(profile, rates=dict(list(profile.rates.items())[:3]))
    small.save(tmp_path / "small.json")
    for given in (small, tmp_path / "small.json", str(tmp_path / "small.json")):
        with mixcache.enable(pipeline, Hold(speedup=2.0, profile=given)) as handle:
            assert isinstance(handle.policy.policy.profile, Profile)
            assert handle.policy.policy.profile.digest == small.digest
            assert handle.policy.policy.learnt == small.learnt
    with pytest.raises(
        ProfileError, match=r"the profile does not fit this model: it is of .*; calibrate anew, or leave profile= out"
    ):
        mixcache.enable(make_pipeline(), Hold(speedup=2.0, profile=small))
    with pytest.raises(ProfileError, match=r"the profile none\.json cannot be read"):
        mixcache.enable(pipeline, Hold(profile="none.json"))


def test_a_speedup_needs_no_profile_and_decibels_do(make_pipeline: Any) -> None:
    pipeline = make_pipeline()
    for settings in ({"speedup": 2.0}, {"quality": "high"}, {}):
        with mixcache.enable(pipeline, **settings) as handle:
            assert handle.policy.policy.profile is None
    message = (
        r'quality=40 is a PSNR, .* `mixcache calibrate` and give it as profile=, or take a word, such as quality="b'
    )
    with pytest.raises(ProfileError, match=message):
        mixcache.enable(pipeline, quality=40.0)
    with mixcache.enable(pipeline) as handle:  # nothing was attached
        assert handle.is_enabled


def test_a_shipped_profile_without_psnrs_is_not_enough_for_decibels(pipeline: Any) -> None:
    profile = profile_for(pipeline.transformer)
    assert profile is not None
    if not profile.psnrs:
        with pytest.raises(ProfileError, match="quality=40 is a PSNR, which no profile of this model estimates"):
            mixcache.enable(pipeline, quality=40)
    measured = replace(profile, psnrs=[[0.25, 50, 50.0], [0.6, 50, 40.0]])
    with mixcache.enable(pipeline, quality=45, profile=measured) as handle:
        assert handle.settings["quality"] == 45
