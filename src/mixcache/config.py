"""MixCacheConfig: every setting of `enable`, checked; unknown names are errors that name the nearest one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Any

from mixcache.policies import POLICIES, Bounded, Policy
from mixcache.trace import Trace

BOUNDS = ("num_warmup_steps", "num_cooldown_steps", "max_age", "max_cached_run")
SPAN = ("span_first", "span_after")
DEFAULT_POLICY = "hindsight"
"""The best without a calibration over the whole range of speed-ups, see docs/results/method-study.md."""


def default_policy(settings: Iterable[str]) -> str:
    """The policy where none is named: the planned one if a speed-up or a quality is asked for."""
    return "planned" if {"speedup", "quality"} & set(settings) else DEFAULT_POLICY


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence: what is unknown, what is nearest, what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (there are: {', '.join(known) or 'none'})"


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
    for an unknown or wrong one.
    """

    policy: str | Policy = DEFAULT_POLICY
    """A name of `mixcache.POLICIES`, or a policy object with its own settings in it."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.build()
        for name in SPAN:
            value = self.settings.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 0")

    def build(self) -> Bounded:
        """The policy inside its bounds."""
        own = self._own_settings()
        for name in self.settings:
            if name not in (*own, *BOUNDS, *SPAN):
                raise ValueError(unknown_name(f"setting of policy {self.policy_name}", name, (*own, *BOUNDS, *SPAN)))
        bounds = {name: self.settings[name] for name in BOUNDS if name in self.settings}
        if isinstance(self.policy, Bounded):
            return replace(self.policy, **bounds)
        policy = self.policy if isinstance(self.policy, Policy) else self._named_policy(self.policy, own)
        return Bounded(policy=policy, **policy.default_bounds | bounds)

    def _named_policy(self, name: str, own: tuple[str, ...]) -> Policy:
        given = {name: self.settings[name] for name in own if name in self.settings}
        if isinstance(given.get("trace"), (str, PathLike)):
            given["trace"] = _trace_of(given["trace"])
        if isinstance(given.get("choices"), list):
            given["choices"] = tuple(given["choices"])
        return POLICIES[name](**given)

    def _own_settings(self) -> tuple[str, ...]:
        if isinstance(self.policy, Policy):
            return ()
        if self.policy not in POLICIES:
            raise ValueError(unknown_name("policy", str(self.policy), POLICIES))
        return setting_names(POLICIES[self.policy])

    @property
    def policy_name(self) -> str:
        return self.policy.name if isinstance(self.policy, Policy) else self.policy

    @property
    def span(self) -> dict[str, int]:
        """Settings of the block span that were given."""
        return {name: self.settings[name] for name in SPAN if name in self.settings}


def _trace_of(path: str | PathLike[str]) -> Trace:
    try:
        return Trace.load(path)
    except OSError as error:
        raise ValueError(f"the trace {path} cannot be read: {error.strerror}") from error


def setting_names(policy_class: type[Policy]) -> tuple[str, ...]:
    """Fields that a policy can be given, in order."""
    return tuple(f.name for f in fields(policy_class))
