"""reuse: the last computed value, as it is.

Source: arXiv 2508.12691, and every cache before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mixcache.predictors.base import Predictor


@dataclass(frozen=True, kw_only=True)
class Reuse(Predictor):
    """Repeats the last value."""

    name: ClassVar[str] = "reuse"

    @property
    def num_values(self) -> int:
        return 1

    def for_length(self, num_values: int) -> Predictor:
        return self

    def weights(self, levels: Sequence[float], level: float) -> list[float]:
        return [0.0] * (len(levels) - 1) + [1.0]
