"""Completes a policy with what the model's profile knows, and was not given: impacts, and what was learnt before.

It works on the policy object, so that an object, alone or in `Bounded`, is what the same policy by name is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from mixcache.config import MixCacheConfig
from mixcache.policies import Hold, MixCache, Policy
from mixcache.policies.way import Learnt
from mixcache.profiles import Profile, ProfileError, profile_for

logger = logging.getLogger("mixcache")


def completed(config: MixCacheConfig, experts: Sequence[torch.nn.Module]) -> MixCacheConfig:
    """The same policy, bounds and span, with nothing left to find out; `experts` are the pipeline's denoisers.

    ProfileError where a profile is needed and none fits.
    """
    bounded = config.build()
    policy = _completed_policy(bounded.policy, experts)
    return MixCacheConfig(policy=replace(bounded, policy=policy), settings=config.span)


def _completed_policy(policy: Policy, experts: Sequence[torch.nn.Module]) -> Policy:
    if isinstance(policy, MixCache) and policy.impacts is None:
        profile = profile_for(*experts)
        if profile is None:
            logger.info("no profile for this %s: the impact of every granularity is 1", type(experts[0]).__name__)
        return replace(policy, impacts={} if profile is None else dict(profile.impacts))
    if isinstance(policy, Hold):
        profile = _profile_of(policy, experts)
        if isinstance(policy.quality, (int, float)) and (profile is None or not profile.psnrs):
            raise ProfileError(
                f"quality={policy.quality:g} is a PSNR, which no profile of this model estimates: make one with "
                '`mixcache calibrate` and give it as profile=, or take a word, such as quality="balanced"'
            )
        if policy.learnt.log_rates:
            return replace(policy, profile=profile)
        return replace(policy, profile=profile, learnt=Learnt() if profile is None else profile.learnt)
    return policy


def _profile_of(policy: Hold, experts: Sequence[torch.nn.Module]) -> Profile | None:
    """The profile given by path or object, else the shipped one if there is one; ProfileError where it does not fit."""
    if policy.profile is None:
        return profile_for(*experts)
    profile = policy.profile if isinstance(policy.profile, Profile) else Profile.load(policy.profile)
    misfit = profile.misfit(*experts)
    if misfit is not None:
        raise ProfileError(f"the profile does not fit this model: {misfit}; calibrate anew, or leave profile= out")
    return profile
