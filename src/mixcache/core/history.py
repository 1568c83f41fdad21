"""The last computed values of one quantity, and what they predict at the present noise level.

Only computed values are pushed (docs/method.md, interference and boundaries, rule 2), so a prediction never stands on a
prediction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Computed:
    """One computed value."""

    step: int
    sigma: float
    value: torch.Tensor


def lagrange_weights(sigmas: list[float], sigma: float, trust: float = 1.0) -> list[float]:
    """Weights of the polynomial through the values at `sigmas`, read at `sigma`; they add up to 1.

    w_k = product over j != k of (sigma - sigma_j) / (sigma_k - sigma_j). The polynomial is followed for the share
    `trust` of the way from the last value. ZeroDivisionError where two sigmas are equal.
    """
    weights = []
    for k, node in enumerate(sigmas):
        weight = 1.0
        for j, other in enumerate(sigmas):
            if j != k:
                weight *= (sigma - other) / (node - other)
        weights.append(trust * weight)
    weights[-1] += 1 - trust
    return weights


def extrapolated(values: Sequence[Computed], sigma: float, trust: float = 1.0) -> torch.Tensor:
    """The polynomial through the values, read at `sigma`, with the dtype of the last one; of one value, or of two at
    one noise level, the last value itself, not to be written to."""
    sigmas = [computed.sigma for computed in values]
    if len(values) == 1 or len(set(sigmas)) < len(sigmas):
        return values[-1].value
    weights = lagrange_weights(sigmas, sigma, trust)
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

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return sum(value.nbytes for value in self.values())

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

    def predict(self, sigma: float, order: int, trust: float = 1.0) -> torch.Tensor:
        """The value at `sigma`, with the dtype of the last one; order 0 repeats it, 1 and 2 extrapolate in sigma.

        Not to be written to: what is repeated is the last value itself.

        An extrapolation is followed for the share `trust` of the way from the last value. An order that the history is
        too short for, or two values at one sigma, lowers the order. ValueError on an empty history.
        """
        if not self._values:
            raise ValueError("an empty history predicts nothing")
        return extrapolated(list(self._values)[-(order + 1) :], sigma, trust)
