"""What is compared: a method is a policy with settings, or the plain pipeline with some number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of a benchmark; `policy` is None for the plain pipeline."""

    name: str
    policy: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_inference_steps: int | None = None
    """Steps of the plain pipeline, where they are fewer than the benchmark's."""


PLAIN = Method(name="plain")


def fewer_steps(num_steps: int) -> Method:
    """The plain pipeline with fewer steps: what any cache has to beat."""
    return Method(name=f"plain, {num_steps} steps", num_inference_steps=num_steps)


def cadences(periods: Mapping[str, float], orders: tuple[int, ...] = (0, 1)) -> list[Method]:
    """`every_nth` of single granularities, one method per granularity and order."""
    return [
        Method(
            name=f"every_nth {granularity}, period {period:g}, order {order}",
            policy="every_nth",
            settings={"granularity": granularity, "period": period, "order": order},
        )
        for granularity, period in periods.items()
        for order in orders
    ]
