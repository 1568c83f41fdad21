"""The last computed values of one quantity, and what they predict at the present noise level.

Only computed values are pushed (docs/method.md, interference and boundaries, rule 2), so a prediction never stands on a
prediction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mixcache.predictors import Predictor


@dataclass(frozen=True, slots=True)
class Computed:
    """One computed value."""

    step: int
    sigma: float
    value: torch.Tensor


def predicted(values: Sequence[Computed], sigma: float, predictor: Predictor) -> torch.Tensor:
    """What the predictor makes of the last values, with the dtype of the very last; of one value, or of two at one
    noise level, the last value itself, not to be written to. ValueError without a value."""
    if not values:
        raise ValueError("an empty history predicts nothing")
    predictor = predictor.for_length(len(values))
    values = values[-predictor.num_values :]
    sigmas = [computed.sigma for computed in values]
    if len(values) == 1 or len(set(sigmas)) < len(sigmas):
        return values[-1].value
    weights = predictor.weights(sigmas, sigma)
    total = values[0].value.float() * weights[0]
    for computed, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(computed.value, alpha=weight)
    return total.to(values[-1].value.dtype)


class History:
    """Keeps the last `length` computed values of one quantity, oldest first."""

    def __init__(self, length: int) -> None:
        self._values: deque[Computed] = deque(maxlen=length)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def last(self) -> torch.Tensor | None:
        return self._values[-1].value if self._values else None

    def values(self) -> Iterator[torch.Tensor]:
        """Oldest first."""
        return (entry.value for entry in self._values)

    def age(self, step: int) -> int:
        """Steps since the last computed value; ValueError without one."""
        if not self._values:
            raise ValueError("an empty history has no age")
        return step - self._values[-1].step

    def is_younger_than(self, other: History) -> bool:
        """True if the last value here was computed after the last one there; neither may be empty."""
        return self._values[-1].step > other._values[-1].step

    def push(self, step: int, sigma: float, value: torch.Tensor) -> None:
        self._values.append(Computed(step, sigma, value))

    def make_room(self) -> None:
        """Drops the oldest value where the next one would push it out."""
        if len(self._values) == self._values.maxlen:
            self._values.popleft()

    def clear(self) -> None:
        self._values.clear()

    def predict(self, sigma: float, predictor: Predictor) -> torch.Tensor:
        """The value at `sigma`, with the dtype of the last one, not to be written to: what is reused is the last value
        itself. ValueError on an empty history."""
        return predicted(list(self._values), sigma, predictor)
