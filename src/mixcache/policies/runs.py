"""Runs of repeated outputs, and the three limits that end them (policy `hold`). Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixcache.policies.way import log_snr

DEFAULT_ERROR = 0.4
"""Limit where nothing is asked for."""
SPAN = 1.25
BUDGET = 9.0
GROWTH = 3.0
"""Most that an error is expected to have grown by, for one unit of noise level, since the last computed step."""
SENSITIVE = -4.3, -1.2
"""Logs of signal over noise between which a clip is settled: where some multiply an error by a hundred."""
SENSITIVITY = 4.0
"""What an error there counts for, more than elsewhere."""
NO_END = 10**9


@dataclass
class Run:
    """The cached steps since the last computed one, and what was expected of them."""

    sigma: float
    """Of the last computed step."""
    rate: float
    """Error for each unit of noise level, as seen there."""
    growth: float
    max_steps: int = NO_END
    began: float = 0.0
    """Log of signal over noise where its first step began."""
    spent: float = 0.0
    """Cost."""
    num_steps: int = 0

    def exceeded(self, limit: float, sigma: float, distance: float, num_steps: int) -> str:
        """Why a step of the loop's `num_steps` may not be cached, from `sigma` on for a `distance`; "" where it may,
        and is then counted as cached."""
        error = self.growth * self.rate * abs(self.sigma - sigma)
        if self.num_steps >= self.max_steps:
            return f"{self.num_steps} cached steps in a row"
        if error > limit:
            return f"an error of {error:.2g} is expected"
        if not self.num_steps:
            self.began = log_snr(sigma)
        elif (span := log_snr(sigma - distance) - self.began) > SPAN * limit:
            return f"the run would span {span:.2g}"
        spent = self.spent + error * (self.num_steps + 1) * weight(sigma, distance, num_steps)
        if spent > BUDGET * limit**2 / num_steps:
            return f"cost {spent:.2g} is over the budget"
        self.spent, self.num_steps = spent, self.num_steps + 1
        return ""


def weight(sigma: float, distance: float, num_steps: int) -> float:
    """What an error counts for at a step from `sigma` on for a `distance`, one of `num_steps`."""
    sensitivity = SENSITIVITY if SENSITIVE[0] < log_snr(sigma) < SENSITIVE[1] else 1.0
    return sensitivity * max(1 / num_steps, distance**2 * num_steps)


def computed_on(sigmas: Sequence[float], rates: Sequence[float], limit: float, run: Run, num_steps: int) -> int:
    """Steps that would be computed of those at the noise levels `sigmas`, but for the last one of these, at which the
    last step arrives; errors grow at the `rates`, and `run` is the one that is under way."""
    count, last, longest = 1, run.rate, run.max_steps  # the last step is computed
    for k in range(len(sigmas) - 2):
        if run.exceeded(limit, sigmas[k], sigmas[k] - sigmas[k + 1], num_steps):
            count += 1
            run = Run(sigmas[k], rates[k], grown(last, rates[k]), longest)
            last = rates[k]
    return count


def grown(before: float, rate: float | None = None) -> float:
    """What a rate is expected to grow by on, as it did between two computed steps."""
    return 1.0 if rate is None or not before else min(GROWTH, max(1.0, rate / before))
