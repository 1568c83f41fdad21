"""How far to follow an extrapolation: learnt at every computed step, used until the next.

Source: ours. A cached step moves the latents off their path, and the model's next output answers to that; a polynomial
through such outputs follows the answer onwards and magnifies it. What share of the extrapolation would have been best
is known at every computed step (`Trial.best_trust`): about 0.7 with 50 steps and 0.35 with 20, on the built-in model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from mixcache.decision import Choice, Trial

NUM_REMEMBERED = 2
"""Computed steps whose best trusts are averaged."""


@dataclass
class Trusts:
    """The best trusts of the last computed steps, by granularity and order."""

    seen: dict[Choice, list[float]] = field(default_factory=dict)

    def of(self, choice: Choice) -> float:
        """How far to follow this extrapolation now; all the way before anything was seen."""
        seen = self.seen.get(choice)
        return fmean(seen) if seen else 1.0

    def observe(self, trials: Mapping[Choice, Trial]) -> None:
        """Remembers what would have been best."""
        for choice, trial in trials.items():
            seen = self.seen.setdefault(choice, [])
            seen.append(trial.best_trust)
            del seen[:-NUM_REMEMBERED]
