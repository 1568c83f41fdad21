"""What a calibration measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mixcache.policies.base import check_count

CALIBRATION_SEED = 4242


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is measured."""

    model: str
    prompts: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the pipeline's call."""
    num_windows: int = 8
    """Places along the trajectory where sensitivity is measured."""
    num_impact_steps: int = 4
    """Steps at which impacts are measured."""
    seed: int = CALIBRATION_SEED
    command: str = field(default="", repr=False)
    """What makes this profile again."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("calibration needs a prompt at least")
        for name in ("num_windows", "num_impact_steps"):
            check_count(name, getattr(self, name), 1)
