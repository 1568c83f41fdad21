"""MixCacheConfig: every setting of `enable`, checked; unknown names are errors that name the nearest one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mixcache.names import unknown_name
from mixcache.policies import POLICIES, Bounded, Policy

BOUNDS = ("num_warmup_steps", "num_cooldown_steps", "max_age", "max_cached_run")
SPAN = ("span_first", "span_after")
DEFAULT_POLICY = "hold"
"""Needs no calibration; how it compares is in docs/results."""


def parse_settings(pairs: Iterable[str] | None) -> dict[str, Any]:
    """`["period=3", "granularity=cfg"]` as a dict with numbers where they are numbers; ValueError for anything else."""
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise ValueError(f"setting {pair!r} is not NAME=VALUE")
        try:
            settings[name.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            settings[name.replace("-", "_")] = text
    return settings


@dataclass(frozen=True, kw_only=True)
class MixCacheConfig:
    """A policy by name, its settings, and the bounds around it.

    `settings` holds fields of the policy (see `mixcache.policies`), of the bounds (`num_warmup_steps`,
    `num_cooldown_steps`, `max_age`, `max_cached_run`) and of the block span (`span_first`, `span_after`). ValueError
    for an unknown or wrong one, TypeError for a policy that is neither a name nor an object.
    """

    policy: str | Policy = DEFAULT_POLICY
    """A name of `mixcache.POLICIES`, or a policy object with its own settings in it, which may be `Bounded`."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, (str, Policy)):
            raise TypeError(_no_policy(self.policy))
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings={self.settings!r} must map names to values, such as {{'num_warmup_steps': 2}}")
        self.build()
        for name in SPAN:
            value = self.settings.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 0")

    def build(self) -> Bounded:
        """The policy inside its bounds."""
        policy = self.policy.policy if isinstance(self.policy, Bounded) else self.policy
        if isinstance(policy, str) and policy not in POLICIES:
            raise ValueError(unknown_name("policy", policy, POLICIES))
        own = setting_names(POLICIES[policy] if isinstance(policy, str) else type(policy))
        for name in self.settings:
            if name not in (*own, *BOUNDS, *SPAN):
                raise ValueError(unknown_name(f"setting of policy {self.policy_name}", name, (*own, *BOUNDS, *SPAN)))
        given = {name: self.settings[name] for name in own if name in self.settings}
        bounds = {name: self.settings[name] for name in BOUNDS if name in self.settings}
        if isinstance(policy, str):
            policy = POLICIES[policy](**given)
        elif given:
            raise ValueError(_beside_an_object(policy, *next(iter(given.items()))))
        if isinstance(self.policy, Bounded):
            return replace(self.policy, **bounds)
        return Bounded(policy=policy, **policy.default_bounds | bounds)

    @property
    def policy_name(self) -> str:
        policy = self.policy.policy if isinstance(self.policy, Bounded) else self.policy
        return policy if isinstance(policy, str) else getattr(policy, "name", type(policy).__name__)

    @property
    def span(self) -> dict[str, int]:
        """Settings of the block span that were given."""
        return {name: self.settings[name] for name in SPAN if name in self.settings}


def _no_policy(given: Any) -> str:
    """One sentence on what was given for a policy and is none."""
    ways = "give a name, enable(pipe, 'every_nth', period=3), or an object, enable(pipe, EveryNth(period=3))"
    if isinstance(given, type) and issubclass(given, Policy):
        return f"policy={given.__name__} is a class and no policy yet; call it: {given.__name__}(...)"
    if isinstance(given, Mapping):
        return f"policy={dict(given)!r} is a dict, and no policy; {ways}"
    return f"policy={given!r} is no policy; {ways}"


def _beside_an_object(policy: Policy, name: str, value: Any) -> str:
    """One sentence on a setting of the policy that was given beside the policy object."""
    setting = f"{name}={value!r}" if len(repr(value)) < 40 else f"{name}=..."
    known = next((known for known, kind in POLICIES.items() if kind is type(policy)), None)
    by_name = f", or name the policy: enable(pipe, {known!r}, {setting})" if known else ""
    return f"{name}= is a setting of the policy: give it to the object, {type(policy).__name__}({setting}){by_name}"


def setting_names(policy_class: type[Policy]) -> tuple[str, ...]:
    """Fields that a policy can be given, in order."""
    return tuple(f.name for f in fields(policy_class) if f.metadata.get("is_setting", True))
