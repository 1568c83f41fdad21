"""always_compute: every step in full; the attachment is there and changes nothing.

Source: the control every other policy is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mixcache.decision import Decision, Granularity, Step
from mixcache.policies.base import Policy


@dataclass(frozen=True, kw_only=True)
class AlwaysCompute(Policy):
    """Never caches."""

    name: ClassVar[str] = "always_compute"

    def decide(self, step: Step, state: Any) -> Decision:
        return Decision(granularity=Granularity.COMPUTE, reason="always")
