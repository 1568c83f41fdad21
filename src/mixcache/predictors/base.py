"""What a predictor is: how much each of the last computed values counts at another noise level. Pure Python.

It sees noise levels, never tensors, so one rule serves outputs, guidance differences, residuals, and the points of a
profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Base of all predictors; they are values, compared by what they do."""

    name: ClassVar[str]

    @property
    def num_values(self) -> int:
        """Computed values that it stands on; a history keeps as many."""
        raise NotImplementedError

    def for_length(self, num_values: int) -> Predictor:
        """The predictor to take in its place where a history has no more than `num_values`, one at least."""
        raise NotImplementedError

    def weights(self, levels: Sequence[float], level: float) -> list[float]:
        """Weights, adding up to 1, of the values computed at `levels`, oldest first, for the prediction at `level`.

        `levels` are `num_values` different noise levels.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        """Its name, which `mixcache.predictors.predictor_of` reads back."""
        return self.name
