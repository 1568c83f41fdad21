"""The policies by name, in reading order. Pure Python: nothing here loads torch."""

from __future__ import annotations

from mixcache.policies.always_compute import AlwaysCompute
from mixcache.policies.base import Policy
from mixcache.policies.bounded import Bounded
from mixcache.policies.every_nth import EveryNth
from mixcache.policies.hindsight import Hindsight
from mixcache.policies.hold import Hold
from mixcache.policies.mixcache import MixCache
from mixcache.policies.replay import Replay

POLICIES: dict[str, type[Policy]] = {
    "always_compute": AlwaysCompute,
    "every_nth": EveryNth,
    "mixcache": MixCache,
    "hold": Hold,
    "hindsight": Hindsight,
    "replay": Replay,
}

__all__ = [
    "POLICIES",
    "AlwaysCompute",
    "Bounded",
    "EveryNth",
    "Hindsight",
    "Hold",
    "MixCache",
    "Policy",
    "Replay",
]
