"""What a policy is: settings that never change, a state that is passed in, two questions. Pure Python.

`init()` makes a state, `decide(step, state)` answers before a step, `observe(measurement, state)` learns after a
computed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step

MAX_ORDER = 2


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all policies. Settings are checked in `__post_init__` by a ValueError that names field, value and way
    out."""

    name: ClassVar[str]
    default_bounds: ClassVar[dict[str, int]] = {}
    """Settings of `Bounded` that suit this policy better than its own defaults."""

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """What the policy may choose besides `compute`: only these keep histories."""
        return ()

    @property
    def max_order(self) -> int:
        """Highest order of predictor the policy may ask for; a history keeps one value more."""
        return 0

    @property
    def measures(self) -> bool:
        """True if the policy wants a Measurement after each computed step (one device sync)."""
        return False

    @property
    def looks_back(self) -> bool:
        """True if a policy that measures wants `Measurement.trials`, every granularity and order tried at each computed
        step, in place of the distances."""
        return False

    @property
    def corrects(self) -> bool:
        """True if cached steps are to be taken again with what the next computed one shows (`core/corrector.py`)."""
        return False

    @property
    def correction_degree(self) -> int | None:
        """Degree of the polynomial that these steps are corrected through, 1 or 2; None for one over the order that
        each was predicted with."""
        return None

    def init(self) -> Any:
        """A fresh state for a new trajectory."""
        return None

    def decide(self, step: Step, state: Any) -> Decision:
        raise NotImplementedError

    def observe(self, measurement: Measurement, state: Any) -> None:
        """Updates `state`; by default nothing is learnt."""


def check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order not in range(MAX_ORDER + 1):
        raise ValueError(f"order={order!r} is not 0 (reuse), 1 or 2 (Lagrange extrapolation in sigma)")


def check_count(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")


def checked_choices(choices: Any) -> tuple[str, ...]:
    """The names of the granularities that may be chosen; ValueError unless they can be cached."""
    if not isinstance(choices, (list, tuple)) or not choices:
        raise ValueError(f"choices={choices!r} must be a list of step, cfg and block, with one at least")
    return tuple(granularity_of(name).value for name in choices)


def is_number(value: Any) -> bool:
    """A finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def granularity_of(name: str | Granularity) -> Granularity:
    """The cached granularity of that name; ValueError lists them."""
    if name in ("step", "cfg", "block"):
        return Granularity(name)
    raise ValueError(f"granularity={str(name)!r} is not one of step, cfg, block")


RISE = 4 / 3
"""What an error may grow by from one computed step of the warm-up to the next."""


def is_rising(error: float, before: float | None) -> bool:
    """True where an error has grown much, or nothing was seen before it.

    Next to pure noise all is calm, and the steps that change most come then.
    """
    return before is None or error > RISE * before
