"""The names of `mixcache bench --methods`: ours, fewer steps, the peers, and groups of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mixcache.bench.methods import MANY_STEPS, Family, Method, cadence, fewer_steps, policy_method
from mixcache.bench.peers import PEERS
from mixcache.bench.peers.peer import FALLBACK
from mixcache.config import MixCacheConfig, parse_settings
from mixcache.names import unknown_name

HINDSIGHT_ERRORS = {
    True: (0.0005, 0.001, 0.002, 0.008, 0.012, 0.018),
    False: (0.02, 0.04, 0.08, 0.15, 0.3),
}
"""Beside the default, for many steps and for few."""
SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 3.5)
"""Wished of the default policy."""
NEAR_2X = {"step": 2.25, "cfg": 12, "block": 3}
"""Periods; cfg cannot reach 2x with anything else computed, so it is caught at its longest."""
CADENCES = (("step", "reuse"), ("step", "line"), ("block", "reuse"), ("cfg", "reuse"))
PERIODS = {"step": (2, 3), "cfg": (12,), "block": (3,)}
SHARES = (0.66, 0.5, 0.4, 0.3)
"""Of the steps, for fewer of them."""


def hindsight(num_steps: int) -> list[Method]:
    return [
        policy_method("hindsight"),
        *(policy_method("hindsight", error=e) for e in HINDSIGHT_ERRORS[num_steps > MANY_STEPS]),
    ]


def hold(num_steps: int) -> list[Method]:
    return [policy_method("hold"), *(policy_method("hold", speedup=speedup) for speedup in SPEEDUPS)]


def mixcache(num_steps: int) -> list[Method]:
    """The paper's policy, at its defaults and with longer intervals, and with values extrapolated that it reuses."""
    settings: list[dict[str, Any]] = [
        {},
        {"first_interval": 6, "max_interval": 6},
        {"predictor": "line", "first_interval": 1},
    ]
    return [policy_method("mixcache", **setting) for setting in settings]


def every_nth(num_steps: int) -> list[Method]:
    """Fixed cadences of a single granularity."""
    return [
        cadence(granularity, period, predictor)
        for granularity, predictor in CADENCES
        for period in PERIODS[granularity]
    ]


def fewer(num_steps: int) -> list[Method]:
    return [fewer_steps(count) for count in dict.fromkeys(max(2, round(num_steps * share)) for share in SHARES)]


def quick(num_steps: int) -> list[Method]:
    """The policies as they come, near 2x: beside fewer plain steps and every single granularity."""
    policies = [
        policy_method("mixcache"),
        policy_method("hindsight"),
        policy_method("hold"),
        policy_method("hold", speedup=2.0),
    ]
    near = [fewer_steps(round(num_steps * share)) for share in (0.56, 0.44)]
    return [
        *policies,
        *near,
        *(cadence(g, period, predictor) for g, period in NEAR_2X.items() for predictor in ("reuse", "line")),
    ]


OURS: dict[str, Family] = {"hold": hold, "hindsight": hindsight, "mixcache": mixcache, "every-nth": every_nth}
FAMILIES: dict[str, Family] = {**OURS, "fewer-steps": fewer, **PEERS, "quick": quick}
GROUPS: dict[str, tuple[str, ...]] = {
    "ours": tuple(OURS),
    "peers": tuple(PEERS),
    "all": (*OURS, "fewer-steps", *PEERS),
}


def split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks; those inside of brackets, as in `granularities=["step","cfg"]`, are none."""
    return re.split(rf"{mark}(?![^\[{{]*[\]}}])", text)


def select(names: Sequence[str], num_steps: int, transformer: str = FALLBACK) -> list[Method]:
    """The methods of some names or groups, each once, and policies with settings (`hindsight:error=0.01:memory=2`).

    Peers have settings of their own for a class of transformers. ValueError for an unknown name, policy or setting.
    """
    found: dict[str, Method] = {}
    for name in names:
        if ":" in name:
            chosen = [_with_settings(name)]
        elif name in FAMILIES or name in GROUPS:
            chosen = [m for family in GROUPS.get(name, (name,)) for m in methods_of(family, num_steps, transformer)]
        else:
            raise ValueError(unknown_name("method", name, (*GROUPS, *FAMILIES)))
        for method in chosen:
            found.setdefault(method.name, method)
    if not found:
        raise ValueError(f"no method is named (there are: {', '.join((*GROUPS, *FAMILIES))})")
    return list(found.values())


def methods_of(family: str, num_steps: int, transformer: str) -> Sequence[Method]:
    """The methods of one family."""
    return PEERS[family](num_steps, transformer) if family in PEERS else FAMILIES[family](num_steps)


def _with_settings(text: str) -> Method:
    policy, *pairs = split(text, ":")
    settings = parse_settings(pairs)
    MixCacheConfig(policy=policy, settings=settings)
    return policy_method(policy, **settings)
