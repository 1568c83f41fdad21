"""mixcache: makes video diffusion transformers faster, by caching what is safe to cache at each step.

    handle = mixcache.enable(pipe)        # a diffusers video pipeline
    pipe("a cat on a skateboard")
    print(handle.summary())

After arXiv 2508.12691. Importing this package loads neither torch nor diffusers; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixcache.config import MixCacheConfig
from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.policies import (
    POLICIES,
    AlwaysCompute,
    Bounded,
    EveryNth,
    Hindsight,
    Hold,
    MixCache,
    Policy,
    Replay,
)
from mixcache.predictors import PREDICTORS, Lagrange, Predictor, Reuse
from mixcache.summary import Summary
from mixcache.trace import Trace, TraceEntry

if TYPE_CHECKING:
    from mixcache.hosts.diffusers.attachment import disable, enable
    from mixcache.hosts.diffusers.handle import Handle
    from mixcache.profiles import Profile

__version__ = "0.1.0"
__all__ = [
    "POLICIES",
    "PREDICTORS",
    "AlwaysCompute",
    "Bounded",
    "Decision",
    "EveryNth",
    "Granularity",
    "Handle",
    "Hindsight",
    "Hold",
    "Lagrange",
    "Measurement",
    "MixCache",
    "MixCacheConfig",
    "Policy",
    "Predictor",
    "Profile",
    "Replay",
    "Reuse",
    "Step",
    "Summary",
    "Trace",
    "TraceEntry",
    "disable",
    "enable",
]


def __getattr__(name: str) -> Any:
    if name in {"disable", "enable"}:
        from mixcache.hosts.diffusers import attachment

        return getattr(attachment, name)
    if name == "Handle":
        from mixcache.hosts.diffusers.handle import Handle

        return Handle
    if name == "Profile":
        from mixcache.profiles import Profile

        return Profile
    raise AttributeError(f"module 'mixcache' has no attribute {name!r}")
