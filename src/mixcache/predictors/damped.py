"""damped: another predictor, followed only for a share of its way from the last computed value.

Source: ours, for the size; docs/experiments/2026-11-damping.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mixcache.predictors.base import Predictor
from mixcache.predictors.reuse import Reuse


@dataclass(frozen=True, kw_only=True)
class Damped(Predictor):
    """Last value + damping x (prediction - last value)."""

    name: ClassVar[str] = "damped"

    predictor: Predictor
    damping: float
    """Share that is followed: 0 repeats the last value, 1 is the predictor itself."""

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping={self.damping!r} is not between 0 and 1")

    @property
    def num_values(self) -> int:
        return self.predictor.num_values

    def for_length(self, num_values: int) -> Predictor:
        return damped(self.predictor.for_length(num_values), self.damping)

    def weights(self, levels: Sequence[float], level: float) -> list[float]:
        weights = [self.damping * weight for weight in self.predictor.weights(levels, level)]
        weights[-1] += 1 - self.damping
        return weights

    def __str__(self) -> str:
        return f"{self.damping!r} {self.predictor}"


def undamped(predictor: Predictor) -> tuple[Predictor, float]:
    """What is damped, and by how much; the predictor itself and 1 where nothing is."""
    return (predictor.predictor, predictor.damping) if isinstance(predictor, Damped) else (predictor, 1.0)


def damped(predictor: Predictor, damping: float) -> Predictor:
    """The predictor followed for a share; itself where that is all, or where nothing but the last value counts."""
    if damping == 1.0 or isinstance(predictor, Reuse):
        return predictor
    return Damped(predictor=predictor, damping=damping)
