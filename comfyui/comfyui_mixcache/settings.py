"""What the node is set to, checked, and the policy that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mixcache import MixCacheConfig
from mixcache.policies import Bounded

QUALITY: dict[str, float] = {"high": 0.12, "balanced": 0.25, "fast": 0.5}
"""The words of policy `hold`, and the error that `hindsight` allows for them between two computed steps, times the
number of steps."""
DEFAULT_QUALITY = "balanced"
POLICIES: dict[str, str] = {"hold": "error", "hindsight": "error", "every_nth": "period"}
"""The policies of the node, and the name of the one setting of each."""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "whole steps": ("step",),
    "negative prompts": ("cfg",),
    "both": ("step", "cfg"),
    "middle blocks": ("block",),
    "all three": ("step", "cfg", "block"),
}
"""What may be left out, and its granularities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Of one MixCache node. ValueError names field, value and way out."""

    quality: str = DEFAULT_QUALITY
    speedup: float = 0.0
    """Wished, of the sampling; 0 leaves it to the quality."""
    start_percent: float = 0.0
    end_percent: float = 1.0
    """Steps before the one and after the other are computed."""
    policy: str = "hold"
    setting: float = 0.0
    """Of the policy: the error of `hold` or `hindsight`, the period of `every_nth`; 0 leaves it to the quality."""
    leave_out: str = "whole steps"
    correct: bool = True

    def __post_init__(self) -> None:
        if self.quality not in QUALITY:
            raise ValueError(f"quality={self.quality!r} is none of {', '.join(QUALITY)}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r} is none of {', '.join(POLICIES)}")
        if self.leave_out not in LEFT_OUT:
            raise ValueError(f"leave_out={self.leave_out!r} is none of {', '.join(LEFT_OUT)}")
        if self.policy == "hold" and LEFT_OUT[self.leave_out] != ("step",):
            raise ValueError(f"leave_out={self.leave_out!r} is not for policy hold: set it to hindsight or every_nth")
        if self.speedup and self.speedup < 1:
            raise ValueError(f"speedup={self.speedup:g} must be 1 or more, such as 2, or 0 to leave it to the quality")
        if self.speedup and self.policy != "hold":
            raise ValueError(f"speedup={self.speedup:g} is for policy hold: set policy to hold, or speedup to 0")
        if self.speedup and self.setting:
            raise ValueError(
                f"speedup={self.speedup:g} and setting={self.setting:g} are both given: set one of them to 0"
            )
        for name in ("start_percent", "end_percent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g} must be between 0 and 1")
        if self.end_percent <= self.start_percent:
            raise ValueError(
                f"end_percent={self.end_percent:g} must be over start_percent={self.start_percent:g}: 0 and 1 cache "
                "wherever it pays"
            )
        try:
            self.bounded(20, corrects=self.correct)  # the policy checks what is its own
        except ValueError as error:
            if not self.setting:
                raise
            own = f"setting={self.setting:g} is the {POLICIES[self.policy]} of policy {self.policy}"
            raise ValueError(f"{own}: {error}") from None

    @property
    def leaves_blocks(self) -> bool:
        return "block" in LEFT_OUT[self.leave_out]

    def bounded(self, num_steps: int, *, corrects: bool, num_before: int = 0, num_after: int = 0) -> Bounded:
        """The policy for that many steps, of which so many lie before the start and after the end."""
        own: dict[str, Any] = {"corrector": corrects}
        if self.policy != "hold":
            own["granularities"] = LEFT_OUT[self.leave_out]
        if self.speedup:
            own["speedup"] = self.speedup
        elif self.setting:
            own[POLICIES[self.policy]] = self.setting
        elif self.policy == "hold":
            own["quality"] = self.quality
        elif self.policy == "hindsight":
            own["error"] = QUALITY[self.quality] / num_steps
        bounded = MixCacheConfig(policy=self.policy, settings=own).build()
        return replace(
            bounded,
            num_warmup_steps=max(bounded.num_warmup_steps, num_before),
            num_cooldown_steps=max(bounded.num_cooldown_steps, num_after),
        )
