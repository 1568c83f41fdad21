"""line, parabola: the polynomial in the noise level through the last computed values.

Source: Lagrange's interpolation formula, w_k = product over j != k of (s - s_j) / (s_k - s_j). TaylorSeer
(arXiv 2503.06923) is the same for evenly spaced steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixcache.predictors.base import Predictor
from mixcache.predictors.reuse import Reuse

NAMES = {1: "line", 2: "parabola", 3: "cubic"}


@dataclass(frozen=True, kw_only=True)
class Lagrange(Predictor):
    """The polynomial of a degree."""

    degree: int
    """1 to 3."""

    def __post_init__(self) -> None:
        if self.degree not in NAMES:
            raise ValueError(f"degree={self.degree!r} is not 1, 2 or 3")

    @property
    def name(self) -> str:  # type: ignore[override]
        return NAMES[self.degree]

    @property
    def num_values(self) -> int:
        return self.degree + 1

    def for_length(self, num_values: int) -> Predictor:
        if num_values > self.degree:
            return self
        return Lagrange(degree=num_values - 1) if num_values > 1 else Reuse()

    def weights(self, levels: Sequence[float], level: float) -> list[float]:
        weights = []
        for k, node in enumerate(levels):
            weight = 1.0
            for j, other in enumerate(levels):
                if j != k:
                    weight *= (level - other) / (node - other)
            weights.append(weight)
        return weights
