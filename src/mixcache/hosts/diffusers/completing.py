"""Completes a policy with what it takes from the model's profile, and was not given: a planner, impacts.

It works on the policy object, so that an object, alone or in `Bounded`, is what the same policy by name is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mixcache.config import MixCacheConfig
from mixcache.hosts.diffusers.scheduler import is_repeatable
from mixcache.planning.experts import planner_for
from mixcache.planning.profiles import Profile, ProfileError, profile_for
from mixcache.policies import MixCache, Planned, Policy

logger = logging.getLogger("mixcache")


def completed(config: MixCacheConfig, pipeline: Any, experts: Sequence[torch.nn.Module]) -> MixCacheConfig:
    """The same policy, bounds and span, with nothing left to find out; `experts` are the pipeline's denoisers.

    ProfileError where a profile is needed and none fits, ValueError for a wish that the profile cannot meet.
    """
    bounded = config.build()
    policy = _completed_policy(bounded.policy, pipeline, experts)
    return MixCacheConfig(policy=replace(bounded, policy=policy), settings=config.span)


def _completed_policy(policy: Policy, pipeline: Any, experts: Sequence[torch.nn.Module]) -> Policy:
    if isinstance(policy, MixCache) and policy.impacts is None:
        profile = profile_for(*experts)
        if profile is None:
            logger.info("no profile for this %s: the impact of every granularity is 1", type(experts[0]).__name__)
        return replace(policy, impacts={} if profile is None else dict(profile.impacts))
    if isinstance(policy, Planned) and policy.planner is None:
        planner = planner_for(
            _profile_of(policy, experts),
            speedup=policy.speedup,
            quality=policy.quality,
            granularities=tuple(policy.granularities),
            predictors=policy.needs.predictors,
            corrects=policy.corrector and is_repeatable(getattr(pipeline, "scheduler", None)),
        )
        return replace(policy, planner=planner)
    return policy


def _profile_of(policy: Planned, experts: Sequence[torch.nn.Module]) -> Profile:
    """The profile given by path or object, else the shipped one; ProfileError where there is none that fits."""
    if policy.profile is None:
        profile = profile_for(*experts)
        if profile is None:
            raise ProfileError(
                f"no profile for this {type(experts[0]).__name__}: make one with `mixcache calibrate` and give it as "
                'profile=, or use policy "hindsight", which needs none'
            )
        return profile
    profile = policy.profile if isinstance(policy.profile, Profile) else Profile.load(policy.profile)
    misfit = profile.misfit(*experts)
    if misfit is not None and not policy.force_profile:
        raise ProfileError(f"the profile does not fit this model: {misfit}; force_profile=True takes it all the same")
    return profile
